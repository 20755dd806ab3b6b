"""Reads keys of a Hugging Face config.json, with aliases, and notes everything that is wrong.

Key names differ between families and between transformers 4 and 5; each look-up therefore names
all aliases. Keys that are missing or of a wrong type are collected, not raised one by one.
"""

from __future__ import annotations

from typing import Any, Final

from planner.errors import Place, ProblemLog

# Order as in vLLM's transformers_utils/config.py (CONFIG_FIELD_ALIASES), with the names that other
# engines and hub files use.
EXPERTS: Final = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
TOP_K: Final = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k",
)
SHARED: Final = ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts", "num_shared_expert")

_LIMIT: Final = 10**9
_OF_THE_WHOLE: Final = ("tie_word_embeddings",)  # the LM head belongs to the outer model


class ConfigReader:
    """Typed access to a configuration, `text_config` merged over the outer keys."""

    def __init__(self, data: dict[str, Any], file: str, log: ProblemLog, prefix: str = "") -> None:
        inner = data.get("text_config")
        self.values = data
        if isinstance(inner, dict):
            outer = {name: data[name] for name in _OF_THE_WHOLE if data.get(name) is not None}
            self.values = {**data, **inner, **outer}
        self.file = file
        self.log = log
        self.prefix = prefix

    def place(self, key: str = "") -> Place:
        """Where a key stands, as far as error messages say it."""
        return Place(self.file, key=f"{self.prefix}{key}" if key else self.prefix.rstrip("."))

    def inside(self, name: str) -> ConfigReader:
        """A reader of the mapping under a key; keys missing there are noted under that name."""
        value, log = self.values.get(name), self.log
        if value is not None and not isinstance(value, dict):
            self.log.add(f"{_shown(value)} is not allowed", where=self.place(name), hint="expected a mapping")
            log = ProblemLog()  # forgotten: that its keys are missing is the same fault
        return ConfigReader(value if isinstance(value, dict) else {}, self.file, log, f"{self.prefix}{name}.")

    def only(self, *names: str) -> ConfigReader:
        """A reader that sees nothing but these keys."""
        seen = {name: self.values[name] for name in names if name in self.values}
        return ConfigReader(seen, self.file, self.log, self.prefix)

    def find(self, *names: str) -> tuple[str, Any]:
        """The first of the names that is set to something, and its value; else ("", None)."""
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        return "", None

    def integer(self, *names: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number under one of the names; noted as missing if there is no default."""
        name, value = self.find(*names)
        if not name:
            if default is not None:
                return default
            alternatives = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
            self.log.add(f"{names[0]}{alternatives} is missing", where=self.place())
            return minimum
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= _LIMIT:
            rule = f"expected a whole number, {minimum} or more"
            if isinstance(value, int) and value > _LIMIT:
                rule += f", at most {_LIMIT:,}"
            self.log.add(f"{_shown(value)} is not allowed", where=self.place(name), hint=rule)
            return minimum
        return value

    def uniform(self, *names: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number, or a list of one per layer that are all equal (Hunyuan writes such lists)."""
        name, value = self.find(*names)
        if not name or not isinstance(value, list):
            return self.integer(*names, default=default, minimum=minimum)
        if value and all(type(item) is int and minimum <= item <= _LIMIT for item in value) and len(set(value)) == 1:
            return int(value[0])
        rule = f"expected one whole number, {minimum} or more, the same for all layers"
        self.log.add(f"{_shown(value)} is not allowed", where=self.place(name), hint=rule)
        return minimum

    def kinds(self, name: str, layers: int, known: dict[str, str]) -> list[str] | None:
        """What each layer is, by a list of names; `known` maps all spellings to the one returned."""
        listed = self.listing(name, layers)
        if listed is None:
            return None
        strange = sorted({_shown(kind) for kind in listed if not isinstance(kind, str) or kind not in known})
        if strange:
            hint = f"known: {', '.join(sorted(known))}"
            self.log.add(f"{', '.join(strange)} is not a known kind of layer", where=self.place(name), hint=hint)
            return None
        return [known[kind] for kind in listed]

    def optional_integer(self, *names: str) -> int | None:
        """A whole number, or None where the key is absent or null."""
        name, _ = self.find(*names)
        return self.integer(name) if name else None

    def flag(self, *names: str, default: bool = False) -> bool:
        """A boolean."""
        name, value = self.find(*names)
        if not name:
            return default
        if not isinstance(value, bool):
            hint = "expected true or false"
            self.log.add(f"{_shown(value)} is not allowed", where=self.place(name), hint=hint)
            return default
        return value

    def text(self, *names: str, default: str = "") -> str:
        """A string."""
        name, value = self.find(*names)
        if not name:
            return default
        if not isinstance(value, str):
            self.log.add(f"{_shown(value)} is not text", where=self.place(name))
            return default
        return value

    def listing(self, name: str, length: int) -> list[Any] | None:
        """A list with one entry per layer, or None where the key is absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length:
            count = len(value) if isinstance(value, list) else 0
            hint = f"expected a list with one entry for each of the {length} layers"
            self.log.add(f"{count} entries", where=self.place(name), hint=hint)
            return None
        return value[:length]

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers of any length, or None where the key is absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            self.log.add("expected a list of whole numbers", where=self.place(name))
            return None
        return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
