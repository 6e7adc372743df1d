"""Rows from files: what an address means, and what the file at it says, word for word."""

from fedmtl_client.reading.addresses import shown
from fedmtl_client.reading.delimited import Dialect
from fedmtl_client.reading.files import read_files

__all__ = ["Dialect", "read_files", "shown"]
