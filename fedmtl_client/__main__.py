"""`python -m fedmtl_client`, and the command `fedmtl-client`."""

import sys

from fedmtl_core.runtime.starting import end_at_once_on_ctrl_c


def main() -> None:
    end_at_once_on_ctrl_c()
    from fedmtl_client.cli import app
    from fedmtl_core.runtime.cli import run

    if sys.argv[1:2] == ["doctor"]:  # no typer group: the main command has required options of its own
        from fedmtl_client.doctor_cli import doctor_app

        sys.argv[:2] = [f"{sys.argv[0]} doctor"]
        run(doctor_app)
    elif sys.argv[1:2] == ["init"]:
        from fedmtl_client.init_cli import init_app

        sys.argv[:2] = [f"{sys.argv[0]} init"]
        run(init_app)
    else:
        run(app)


if __name__ == "__main__":
    main()
