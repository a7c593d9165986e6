"""The results of a comparison as one self-contained HTML file."""

from .contents import Page, Verdict
from .document import write_page

__all__ = ["Page", "Verdict", "write_page"]
