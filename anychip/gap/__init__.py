"""The gap between two chips: record one chip's run as a bundle, compare two bundles, report."""
