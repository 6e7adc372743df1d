"""Builds a client session from a configuration, for programs, notebooks and the command line."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedmtl_client import credentials
from fedmtl_core import config as configuration
from fedmtl_core import logs, plugins
from fedmtl_core.config import WHOLE, Config, LocalClient, TaskConfig, parse_address, parse_shard
from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.runtime.tracing import Tracing
from fedmtl_core.runtime.tracing_setup import tracing_for
from fedmtl_core.tasks.glue import PRESETS

if TYPE_CHECKING:
    import torch

    from fedmtl_client.session import ClientResult, ClientSession
    from fedmtl_client.task_state import WorkerSettings
    from fedmtl_client.trainer import Trainer
    from fedmtl_core.tasks.plan import TrainingPlan
    from fedmtl_core.tasks.spec import TaskSpec

_T = TypeVar("_T")


class Client:
    """One client with one or several tasks: `Client(config, task="sst2").run()`.

    It handles no signals and prints nothing; it logs with structlog. If the configuration's `clients` list this client,
    its tasks, shard, token and certificate are read from there.

    Args:
        config: the location of the client's rows and its settings: a `Config`, nested dictionaries, or the path of a
            YAML file; None for a GLUE task from the model hub.
        task: the task that the client has rows for. Without `task` and `tasks`, the tasks in the client's entry in
            `clients`, or `client.tasks`.
        tasks: the tasks, if there are several; the client has one of them in each round.
        client_id: the client's unique name. If None, the only entry of `clients` with these tasks, or a generated name
            if no entry has them.
        server: the server's address, `HOST:PORT`; `client.server` of the configuration if None.
        shard: `K/N` for the K-th of N disjoint parts of the rows; if None, the shard in the client's entry in
            `clients`.
        origin: the file that a `Config` was read from, for messages.
        progress_bar: whether to show a progress bar during training if standard error is a terminal.

    Raises:
        ConfigError: the configuration is invalid, no task is named, the task is unknown, or the server may not be
            called without TLS.
    """

    def __init__(
        self,
        config: Config | Mapping[str, object] | Path | str | None = None,
        *,
        task: str | None = None,
        tasks: Sequence[str] | None = None,
        client_id: str | None = None,
        server: str | None = None,
        shard: str | None = None,
        origin: Path | None = None,
        progress_bar: bool = False,
    ):
        logs.be_quiet_unless_configured()
        if origin is None and isinstance(config, (Path, str)):
            origin = Path(config)
        settled = configuration.resolve(config)
        given = _given(task, tasks)
        self.client_id = _client_id(settled, given, client_id)
        mine = listed(settled, self.client_id, given, origin)
        self.tasks = tasks_of(settled, given, mine)
        self._sections = {name: section_of(settled, name, origin) for name in self.tasks}
        self._config = with_own_credentials(settled, mine)
        self._skew = mine.partition if mine else None
        self._shard = _checked(parse_shard, "shard", shard or (mine.shard if mine else WHOLE))
        self._server = _checked(parse_address, "server", server or settled.client.server)
        self._progress_bar = progress_bar
        self._credentials = credentials.load(self._config)
        self._credentials.require_safe(self._server)

    def run(self) -> ClientResult:
        """Participate until the run is over.

        Returns:
            The client's work, round by round.

        Raises:
            DataError: the rows don't exist, or contradict the task.
            ConfigError: the server's task of this name differs, or this machine can't provide a setting.
            ModelUnavailableError: the encoder's architecture or its tokenizer can't be loaded.
            UnavailableError: the server was unreachable for too long.
            RequestError: the server refuses this client.
        """
        tracing = tracing_for(self._config.tracing, "fedmtl-client")
        try:
            return self._session(tracing).run()
        finally:
            tracing.close()

    def _session(self, tracing: Tracing) -> ClientSession:
        import torch  # takes seconds to import; configuration errors are reported before

        from fedmtl_client import data
        from fedmtl_client.api import ConnectionSettings, FederationApi
        from fedmtl_client.partition import LabelSkew
        from fedmtl_client.schedule import TaskSchedule
        from fedmtl_client.session import ClientSession
        from fedmtl_client.task_state import ClientTask
        from fedmtl_client.worker import RoundWorker

        config = self._config
        if config.client.num_threads:
            torch.set_num_threads(config.client.num_threads)
        schedule = TaskSchedule(self.tasks, config.client.selection, config.training.seed, self.client_id)
        settings = self._settings()
        skew = LabelSkew(self._skew.dirichlet, self._skew.seed) if self._skew else None
        tasks = []
        for name, section in self._sections.items():
            spec = section.spec(name)
            rows = data.load_task_data(spec, section.data, self._shard, skew)
            tasks.append(ClientTask(spec, rows, section.train_samples or 0, section.val_samples or 0))
        api = FederationApi(
            self._server,
            client_id=self.client_id,
            task=schedule.first,
            tasks=self.tasks,
            reconnect_s=config.client.reconnect_s,
            compression=config.wire.compression,
            connection=ConnectionSettings(self._credentials, credentials.Renewal(config)),
            tracing=tracing,
        )
        worker = RoundWorker(self.client_id, tasks, settings, tracing)
        return ClientSession(api, worker, schedule=schedule, progress_bar=self._progress_bar, tracing=tracing)

    def _settings(self) -> WorkerSettings:
        from fedmtl_client.task_state import WorkerSettings
        from fedmtl_client.trainer import choose_device

        config = self._config
        return WorkerSettings(
            device=choose_device(config.training.device),
            model=own_model(config),
            upload=config.wire.upload,
            download=config.wire.download,
            topk_density=config.wire.topk_density,
            random_init=config.model.random_init,
            fetch_base=config.client.fetch_base,
            state_dir=config.client.state_dir,
            trainer=_trainer(config),
        )


def _checked(parse: Callable[[str], _T], what: str, text: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None


def section_of(config: Config, task: str, origin: Path | None) -> TaskConfig:
    """Return the configuration's section of a task.

    Raises:
        ConfigError: the configuration has no such section, and the task is no preset.
    """
    if task in config.tasks:
        return config.tasks[task]
    if config.tasks or origin is not None:
        raise ConfigError(
            f"task: {_name(origin)} has the tasks {', '.join(config.tasks) or '(none)'}, got {task!r}; "
            f"choose one of them, or describe the task under `tasks`"
        )
    if task in PRESETS:
        return TaskConfig()
    raise ConfigError(
        f"task: expected one of {', '.join(PRESETS)}, got {task!r}; "
        f"to use another task, describe it under `tasks` in a configuration file and pass the file with --config"
    )


def _given(task: str | None, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Return the tasks named by the caller; empty if the configuration is to name them."""
    if isinstance(tasks, str):
        raise ConfigError(f"tasks: expected a list of names, got {tasks!r}; pass a single task as `task`")
    if task is not None and tasks is not None:
        raise ConfigError("task: expected either `task`, or `tasks` for several tasks, got both")
    return named_once((task,) if task is not None else tasks or ())


def named_once(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the given tasks unchanged.

    Raises:
        ConfigError: a task occurs twice.
    """
    if twice := [name for name, count in Counter(tasks).items() if count > 1]:
        raise ConfigError(f"task: expected each task once, got {twice[0]!r} several times")
    return tuple(tasks)


def tasks_of(config: Config, given: Sequence[str], mine: LocalClient | None) -> tuple[str, ...]:
    """Return a client's tasks: the tasks given at the start, or else the configuration's.

    Raises:
        ConfigError: neither names a task.
    """
    tasks = given or (mine.task_names if mine else ()) or config.client.tasks
    if not tasks:
        raise ConfigError(
            "task: required: name the task or tasks that this client has data for, with --task, as `client.tasks`, or "
            "in the client's entry in `clients`"
        )
    return tuple(tasks)


def _client_id(config: Config, tasks: Sequence[str], given: str | None) -> str:
    if given is None:
        wanted = tasks or config.client.tasks or ()
        known = [client.client_id for client in config.clients if set(wanted) <= set(client.task_names)]
        if len(known) > 1:
            of = f" for {', '.join(map(repr, wanted))}" if wanted else ""
            raise ConfigError(f"client_id: required, since `clients` list several{of}: {', '.join(known)}")
        given = known[0] if known else f"{(wanted or ['client'])[0][:32]}-{uuid.uuid4().hex[:8]}"
    try:
        return require_identifier("client_id", given)
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from None


def listed(config: Config, client_id: str, tasks: Sequence[str], origin: Path | None) -> LocalClient | None:
    """Return the client's entry in the configuration's `clients`; None if there is no such entry.

    Args:
        tasks: the tasks given at the start: some of the entry's tasks, or none for all of them.

    Raises:
        ConfigError: a given task is not in the client's entry, or the entry names the client's own configuration file.
    """
    mine = next((client for client in config.clients if client.client_id == client_id), None)
    if mine is None:
        return None
    if mine.config is not None:
        raise ConfigError(
            f"clients: {_name(origin)} says that {client_id!r} has its own configuration file; start the client with "
            f"--config {mine.config}"
        )
    for task in tasks:
        if task not in mine.task_names:
            has = ("task " if len(mine.task_names) == 1 else "tasks ") + ", ".join(map(repr, mine.task_names))
            raise ConfigError(
                f"task: in `clients` of {_name(origin)}, {client_id!r} has the {has}, "
                f"got {task!r}; change the entry or the task, or choose another client id"
            )
    return mine


def _name(origin: Path | None) -> str:
    return str(origin) if origin else "the configuration"


def with_own_credentials(config: Config, mine: LocalClient | None) -> Config:
    """Return a configuration whose `client` section names the credential files of the client's entry in `clients`."""
    own = {} if mine is None else {key: getattr(mine, key) for key in ("token_file", "tls_certificate", "tls_key")}
    files = {key: path for key, path in own.items() if path is not None}
    return config.model_copy(update={"client": config.client.model_copy(update=files)})


def _trainer(config: Config) -> Callable[[TaskSpec, TrainingPlan, torch.device], Trainer]:
    """Return a factory for the trainer that the configuration names."""
    from fedmtl_client.trainer import Trainer

    key, reference = "training.trainer", config.training.trainer
    if reference is None:
        return Trainer
    kind, options = plugins.load(key, reference, Trainer), config.training.trainer_options or {}

    def make(spec: TaskSpec, plan: TrainingPlan, device: torch.device) -> Trainer:
        with plugins.attribute_errors(key, reference):
            return kind(spec, plan, device, **options)

    return make


def own_model(config: Config) -> str | None:
    """Return the model that the client's own configuration names; None if it names none."""
    given = config.model.model_fields_set & {"server_model", "client_model"}
    return (config.model.client_model or config.model.server_model) if given else None
