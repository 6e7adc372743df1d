"""A client's checks of its model before the start: encoder, adapters, the weights beside them, and own parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedmtl_core.config import Config
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.doctor import Finding, fail, ok, warn

if TYPE_CHECKING:
    from fedmtl_client.slices import ServerBase
    from fedmtl_core.model.modeling import MultiTaskModel
    from fedmtl_core.tasks.plan import TrainingPlan
    from fedmtl_core.tasks.spec import TaskSpec


def encoder(
    config: Config, plan: TrainingPlan, source: str, specs: Sequence[TaskSpec], base: ServerBase | None = None
) -> Iterator[Finding]:
    """Check that the encoder can be trained as the server plans. Weights are read if the client starts from any.

    Args:
        source: name or folder of the client's model.
        specs: the client's tasks.
        base: the server's base if the plan has adapters.
    """
    from fedmtl_core.model.adapters import require_peft
    from fedmtl_core.model.encoder_check import Use, check
    from fedmtl_core.model.encoders import load_encoder, load_tokenizer, weights_of
    from fedmtl_core.model.modeling import MultiTaskModel
    from fedmtl_core.model.pretrained import LoadedWeights

    if plan.adapters is not None:
        require_peft()
    fetches = config.client.fetch_base
    starts_from_any = bool(_own_of_encoder(plan)) if plan.adapters is None else not fetches
    has_weights = config.model.random_init or weights_of(source)[1]
    loaded: list[LoadedWeights] = []
    made, hidden_size = load_encoder(
        source,
        weights=starts_from_any and has_weights,
        num_hidden_layers=plan.num_hidden_layers or None,
        random_init=config.model.random_init,
        seed=plan.seed,
        on_weights=loaded.append,
    )
    use = Use.by_tasks(source, plan.max_length, plan.pooling, specs)
    yield from doctor.remarks(check(made, load_tokenizer(source), use, loaded[0] if loaded else None))
    if plan.adapters is not None and base is not None:
        model = MultiTaskModel(made, [specs[0]], hidden_size=hidden_size, pooling=plan.pooling, adapters=plan.adapters)
        yield from adapters(model, plan, base, source=source, has_weights=has_weights, fetches=fetches)


def adapters(
    model: MultiTaskModel, plan: TrainingPlan, server: ServerBase, *, source: str, has_weights: bool, fetches: bool
) -> Iterator[Finding]:
    """Check that a client can train a plan's adapters.

    Args:
        model: a model with the plan's adapters and the head of one of the client's tasks.
        plan: the server's training plan.
        server: the server's base.
        source: name or folder of the client's model.
        has_weights: whether the model has the weights of `source`.
        fetches: whether the client downloads the base, as `client.fetch_base` says.
    """
    from fedmtl_core.model.adapter_check import check_adapters

    assert plan.adapters is not None
    sizes = {name: tensor.nbytes for name, tensor in model.exchanged().items() if name not in plan.local}
    sent = doctor.megabytes(sum(sizes.values()))
    yield ok(
        "adapters",
        f"{plan.adapters.kind} of rank {plan.adapters.rank}: a slice and an update have at most {sent} each, heads "
        "included and before any encoding",
    )
    for remark in check_adapters(model.encoder, model.pooling).remarks:
        yield (fail if remark.is_error else warn)("adapters", remark.found, remark.advice)
    yield base(model, server, source=source, has_weights=has_weights, fetches=fetches)


def base(model: MultiTaskModel, server: ServerBase, *, source: str, has_weights: bool, fetches: bool) -> Finding:
    """Compare the base of a client's model with the server's, by digest.

    Args:
        model: the client's model with adapters.
        server, source, has_weights, fetches: see `adapters`.
    """
    from fedmtl_core.model.encoders import is_on_this_machine
    from fedmtl_core.wire.layout import digest_of, digests_of, joint_digest

    size = doctor.megabytes(server.num_bytes)
    if fetches:
        return ok("base", f"{size} are downloaded from the server when the client starts (client.fetch_base)")
    fetch = f"set client.fetch_base to true, which downloads {size} from the server once"
    if not has_weights:
        found = f"the weights of {source} aren't on this machine, so they weren't compared with the server's"
        if is_on_this_machine(source):
            return fail("base", found, f"name a folder that has them (model.client_model), or {fetch}")
        return warn("base", found, f"they will be downloaded from the hub at the start; or {fetch}")
    parts = model.base().values()
    if joint_digest(map(digest_of, parts)) == server.digest:
        return ok("base", f"the weights of {source} are those that the server's adapters were made for")
    mine = {name: digest for tensors in parts for name, digest in digests_of(tensors).items()}
    differing = [name for name in dict.fromkeys([*server.tensors, *mine]) if mine.get(name) != server.tensors.get(name)]
    first = f"{differing[0]} is the first of {len(differing)} tensors that differ" if differing else "the order differs"
    return fail(
        "base",
        f"the weights of {source} aren't those that the server's adapters were made for: {first}",
        f"name the same model as the server's model.server_model (model.client_model), or {fetch}",
    )


def own_parameters(config: Config, plan: TrainingPlan, model: str) -> Iterator[Finding]:
    """Check that the client's local parameters have initial values, and a folder that keeps them between starts."""
    from fedmtl_core.model.encoders import weights_of

    of_encoder = _own_of_encoder(plan)
    has_weights = config.model.random_init or weights_of(model)[1]
    if of_encoder and not has_weights:
        yield fail(
            "own parameters",
            f"{len(of_encoder)} local tensors of the encoder start from the weights of {model}, which aren't on this "
            "machine",
            "name a model with weights (model.client_model), or set model.random_init to true",
        )
    elif config.client.state_dir is None:
        yield ok("own parameters", f"{len(plan.local)} tensors, in memory only; client.state_dir would keep them")
    else:
        yield from doctor.writable("own parameters", config.client.state_dir)


def _own_of_encoder(plan: TrainingPlan) -> list[str]:
    """Return the names of the encoder's parameters that the client keeps local."""
    from fedmtl_core.model.scopes import SHARED, scope_of

    return [name for name in plan.local if scope_of(name) == SHARED]
