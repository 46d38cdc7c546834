"""Running a model: opening one by name, and generating tokens with it."""
