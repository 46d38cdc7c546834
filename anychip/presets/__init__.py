"""The published and the small configurations, as the publisher spells config.json."""
