"""A run as one HTML page that opens without network or server, made from the run's files alone."""

from posttrain.page.render import render_page, write_page

__all__ = ["render_page", "write_page"]
