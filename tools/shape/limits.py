"""What the project holds itself to: one table of limits, and one table that orders the rooms."""

from __future__ import annotations

from dataclasses import dataclass

PACKAGES = ("fedmtl_core", "fedmtl_server", "fedmtl_client", "fedmtl_local", "fedmtl_experiment", "benchmarks", "tools")
"""What is measured: neither tests nor generated code."""

ACCESS = "fedmtl_server/access/"
MIGRATIONS = "fedmtl_server/storage/migrations/"

APART = ("fedmtl_server/", "fedmtl_client/")
"""Two packages that never import each other; only the contract and `fedmtl_core` are between them."""


@dataclass(frozen=True)
class Limit:
    """The most that a figure may be."""

    figure: str
    at_most: int
    why: str
    exempt: tuple[str, ...] = ()
    """Beginnings of the paths that the limit isn't meant for."""


LIMITS = (
    Limit("lines of a class", 300, "A class with one job can be read at one sitting."),
    Limit("methods of a class", 25, "More methods than that serve more than one job."),
    Limit(
        "parameters of a constructor",
        8,
        "A class that needs more is given work to do for others. Written `__init__` methods count, without `self`; "
        "frozen dataclasses and sections of the configuration are data, and have none.",
    ),
    Limit("lines of a file", 450, "A file has one reason to exist."),
    Limit("lines of the median file", 110, "Most files fit in two looks."),
    Limit(
        "lines of a function",
        60,
        "A function fits in one look. A migration is one long list of columns, and is never changed.",
        (MIGRATIONS,),
    ),
    Limit("import circles", 0, "Files in a circle can only be understood, tested and moved together."),
    Limit("imports upwards", 0, "A lower room knows nothing of those above it: LAYERS has the order."),
    Limit("modules in no room", 0, "Every module has its place in the order: put it in LAYERS."),
    Limit("imports between server and client", 0, "They share the contract and fedmtl_core, and nothing else."),
    Limit("Any, in all packages", 150, "What is `Any` is not checked."),
    Limit("Any, in fedmtl_server/access", 10, "What decides who may call is checked."),
    Limit(
        "modules that a file imports",
        20,
        "Who imports more is where everything meets. The assembly alone is meant for that.",
        ("fedmtl_server/assembly.py",),
    ),
)

# Each line is one room: its package, then its folders and files (`*`: all of it). A file is in the room whose entry is
# the longest that its path begins with. A room imports from itself and from every line above it, never from one below.
LAYERS = """
fedmtl_core        errors.py json_types.py __init__.py
fedmtl_core        addresses.py identifiers.py logs.py plugins.py randomness.py
fedmtl_core        tasks/
fedmtl_core        wire/
fedmtl_core        model/
fedmtl_core        config/
fedmtl_core        model/encoder_check.py
fedmtl_core        runtime/

fedmtl_server      aggregation/
fedmtl_server      model_parts.py skeleton.py model.py
fedmtl_server      sharing/
fedmtl_server      aggregation_setup.py
fedmtl_server      rounds/
fedmtl_server      storage/
fedmtl_server      saved_runs.py
fedmtl_server      transfer/
fedmtl_server      events.py status.py
fedmtl_server      commits.py
fedmtl_server      run_spec.py run_log.py
fedmtl_server      round_updates.py open_round.py
fedmtl_server      audience.py driver.py
fedmtl_server      federation.py
fedmtl_server      rpc/
fedmtl_server      recovery.py
fedmtl_server      access/
fedmtl_server      monitoring/
fedmtl_server      assembly.py
fedmtl_server      server.py
fedmtl_server      api.py __init__.py
fedmtl_server      export/ doctor.py
fedmtl_server      commands/ __main__.py

fedmtl_client      tables.py partition.py
fedmtl_client      reading/
fedmtl_client      columns.py targets.py proposals.py data.py batches.py vocabulary.py
fedmtl_client      component_cache.py slices.py
fedmtl_client      models.py proximal.py scaffold.py schedule.py synchronizer.py local_state.py trainer.py
fedmtl_client      progress.py feedback.py transport.py task_state.py worker.py
fedmtl_client      credentials.py failures.py interrupts.py patience.py transfers.py downloads.py uploads.py
fedmtl_client      connection.py messages.py
fedmtl_client      api.py
fedmtl_client      session.py
fedmtl_client      client.py __init__.py
fedmtl_client      client_file.py task_options.py options.py
fedmtl_client      doctor.py server_tasks.py cli.py doctor_cli.py init_cli.py __main__.py

fedmtl_local       *
fedmtl_experiment  *
benchmarks         *
tools              *
"""
