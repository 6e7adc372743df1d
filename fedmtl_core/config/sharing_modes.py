"""The modes of `sharing` in words, for the log and for `fedmtl-server doctor`."""

from __future__ import annotations

from fedmtl_core.config.root import Config
from fedmtl_core.config.sharing import SharingConfig

_PLAIN = "one encoder is averaged over all tasks, and each task has its own head"
_AUTO = "each task has its own encoder, and takes other tasks' updates where clients' evaluations show a gain"
_INSTEAD = {
    "plain": "`sharing: plain` averages one encoder over all tasks",
    "auto": "`sharing: auto` gives each task its own encoder, which takes other tasks' updates where clients' "
    "evaluations show a gain",
}


def sharing_in_words(config: Config) -> dict[str, str]:
    """Describe the sharing of a run.

    Args:
        config: the run's configuration.

    Returns:
        `mode`, which is `plain`, `auto` or, if other keys of `sharing` are set, `custom`; its `meaning`; and `instead`,
        the effect of the other modes, which a run with one task doesn't have.
    """
    keys = _other_keys(config)
    is_custom = bool(keys) and not config.sharing.is_auto
    mode = "custom" if is_custom else config.sharing.mode
    if is_custom:
        meaning = f"as configured in `sharing`: {', '.join(keys)}"
    elif len(config.tasks) == 1:
        meaning = "the run has one task, for which `plain` and `auto` are the same"
    else:
        meaning = _AUTO if mode == "auto" else _PLAIN
        meaning += f"; other settings of `sharing`: {', '.join(keys)}" if keys else ""
    words = {"mode": mode, "meaning": meaning}
    if len(config.tasks) > 1:
        words["instead"] = "; ".join(text for other, text in _INSTEAD.items() if other != mode)
    return words


def _other_keys(config: Config) -> list[str]:
    """Return the keys in `sharing` whose values don't follow from its mode, such as `adaptive.patience`."""
    default = SharingConfig(mode=config.sharing.mode).with_policy_of_mode(len(config.tasks))
    sections = [("", config.sharing, default), ("adaptive.", config.sharing.adaptive, default.adaptive)]
    return [
        prefix + name
        for prefix, section, other in sections
        for name in type(section).model_fields
        if name != "adaptive" and getattr(section, name) != getattr(other, name)
    ]
