"""`python -m fedmtl_client`, and the command `fedmtl-client`."""

from fedmtl_core.cli import run
from fedmtl_client.cli import app


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
