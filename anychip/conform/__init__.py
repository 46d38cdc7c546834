"""Conformance: does an implementation of DeepSeek-V4 give the reference's log-probabilities, and what fails if not?"""
