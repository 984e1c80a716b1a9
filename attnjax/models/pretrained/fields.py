"""The fields of a `config.json`, each of which must be understood."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_NO_EFFECT = """
_name_or_path architectures bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id directionality
diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
gradient_checkpointing id2label initializer_factor initializer_range is_encoder_decoder label2id
language length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups
num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict
return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
unk_token_id use_bfloat16 use_cache
"""
_DROPOUTS = """
attention_dropout attention_probs_dropout_prob attn_pdrop dropout_rate embd_pdrop
hidden_dropout_prob resid_pdrop summary_first_dropout
"""
# Of no effect on what a model computes from tokens: names, ids, classes of other heads, training,
# and how text is generated.
IRRELEVANT = frozenset(_NO_EFFECT.split())
# Dropout acts in training only; models are loaded without it.
DROPOUTS = frozenset(_DROPOUTS.split())
# Of effect unless they are this.
_RESTRICTED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
_MISSING = object()


class Fields:
    """Reads the fields of a `config.json` and remembers which.

    Args:
      values: the fields.
      where: what the fields are part of, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self._values, self._where = dict(values), where
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field as it is."""
        self._read.add(name)
        return self._values.get(name, default)

    def size(self, name: str, default: Any = _MISSING) -> Any:
        """Returns a positive integer; absent or null is the default, or an error without one."""
        return self._number(name, default, int, "a positive integer")

    def number(self, name: str, default: Any = _MISSING) -> Any:
        """Returns a positive number; absent or null is the default, or an error without one."""
        return self._number(name, default, (int, float), "a positive number")

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false; absent or null is the default."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{self._where}: {name}: expected true or false, got {value!r}.")
        return default if value is None else value

    def choice(self, name: str, known: Mapping[str, Any], default: str) -> Any:
        """Returns what the value of a field stands for; absent or null is the default.

        Raises:
          NotImplementedError: for a value that stands for nothing here.
        """
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in known:
            raise NotImplementedError(
                f"{self._where}: {name}: only {', '.join(known)} can be loaded, got {value!r}."
            )
        return known[value]

    def only(self, name: str, *allowed: Any) -> None:
        """Reads a field that may have some values only, or be absent or null.

        Raises:
          NotImplementedError: for any other.
        """
        value = self.get(name)
        if value is not None and value not in allowed:
            raise NotImplementedError(
                f"{self._where}: {name}: only {' or '.join(map(repr, allowed))} can be loaded, "
                f"got {value!r}."
            )

    def part(self, name: str) -> Fields | None:
        """Returns the fields of a field, or None if it is absent or null."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{self._where}: {name}: expected fields in braces, got {value!r}.")
        return None if value is None else Fields(value, f"{self._where}: {name}")

    def finish(self, *ignored: Collection[str]) -> None:
        """Checks that every field was read.

        Args:
          *ignored: names of fields that have no effect.

        Raises:
          NotImplementedError: if others are left, by name.
        """
        for name, allowed in _RESTRICTED.items():
            self.only(name, allowed)
        left = self._values.keys() - self._read.union(*ignored)
        if left:
            raise NotImplementedError(
                f"{self._where}: cannot tell what {', '.join(sorted(left))} would change. If it is "
                "nothing, delete it."
            )

    def _number(self, name: str, default: Any, kind: Any, expected: str) -> Any:
        value = self.get(name)
        if value is None and default is not _MISSING:
            return default
        if not isinstance(value, kind) or isinstance(value, bool) or not value > 0:
            got = "nothing" if value is None else repr(value)
            raise ValueError(f"{self._where}: {name}: expected {expected}, got {got}.")
        return value
