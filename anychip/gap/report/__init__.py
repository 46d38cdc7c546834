"""A comparison shown: in the terminal, as one HTML file, as JSON."""

from .as_json import to_json
from .html import write_html
from .terminal import print_report

__all__ = ["print_report", "to_json", "write_html"]
