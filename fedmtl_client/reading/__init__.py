"""Reads rows from files, folders and URLs, with unchanged values."""

from fedmtl_client.reading.addresses import shown
from fedmtl_client.reading.delimited import Dialect
from fedmtl_client.reading.files import read_files

__all__ = ["Dialect", "read_files", "shown"]
