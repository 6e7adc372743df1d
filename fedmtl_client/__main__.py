"""`python -m fedmtl_client`, and the command `fedmtl-client`."""

from fedmtl_client.cli import app
from fedmtl_core.cli import run


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
