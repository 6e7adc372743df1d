"""Files to read, and what of them is compared."""

from structlog.testing import capture_logs

from fedmtl_client.reading import Dialect, read_files


def read(path, *wanted, texts=(), quoting="auto", header="first_row"):
    """The wanted columns of the rows at an address, `text` and `label` if none are named, as rows."""
    wanted = wanted or ("text", "label")
    columns = read_files(str(path), wanted, texts, Dialect(quoting, header)).columns
    return list(zip(*(columns[name] for name in wanted), strict=True))


def read_with_log(path, *wanted, **options):
    """The rows, and what the log says of them."""
    with capture_logs() as log:
        rows = read(path, *wanted, **options)
    return rows, [{key: value for key, value in line.items() if key != "log_level"} for line in log]
