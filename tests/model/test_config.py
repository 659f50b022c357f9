"""What transformers' source says of its architectures is what transformers does."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from chronomask.config_layers import Layer
from chronomask.errors import UsageError
from chronomask.model.build import _fields_of
from chronomask.model.config import FromConfig, fields_of, masked_lm_types
from chronomask.train.config import RunConfig


def test_the_architectures_are_those_of_transformers() -> None:
    assert masked_lm_types() == tuple(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def test_no_field_that_an_architecture_takes_is_refused() -> None:
    for model_type in masked_lm_types():
        known = fields_of(model_type)
        taken = _fields_of(AutoConfig.for_model(model_type))
        if known is not None:
            assert known.accepted >= taken, model_type
            assert set(known.own) <= taken, model_type
    for model_type in ("bert", "roberta", "modernbert", "deberta-v2", "electra", "xlm-roberta"):
        assert fields_of(model_type) is not None


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="f: model_type is 'brt'; did you mean 'bert'"):
        FromConfig.parse({"model_type": "brt"}, "f")
    with pytest.raises(
        UsageError, match=r"unknown key 'overrides\.hiden_size'; did you mean 'hidd"
    ):
        FromConfig.parse({"overrides": {"hiden_size": 3}}, "f")
    with pytest.raises(
        UsageError, match=r"unknown key 'hidden_size'; did you mean 'overrides\.hidden_size'"
    ):
        FromConfig.parse({"hidden_size": 3}, "f")


def test_a_source_of_another_form_leaves_the_refusal_to_building(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from chronomask.model import config

    for name in ("masked_lm_types", "fields_of", "_classes"):
        monkeypatch.setattr(config, name, getattr(config, name).__wrapped__)
    for text in (
        "",
        "MODEL_FOR_MASKED_LM",
        "\nMODEL_FOR_MASKED_LM_MAPPING_NAMES = OrderedDict(x\n)\n",
        "(",
    ):
        monkeypatch.setattr(config, "_source", lambda _, text=text: text)
        assert config.masked_lm_types() == ()
        assert config.fields_of("bert") is None
        assert FromConfig(model_type="brt", overrides={"x": 1}).model_type == "brt"


def test_names_are_checked_without_importing_transformers() -> None:
    code = (
        "import sys; from chronomask.model.config import FromConfig; FromConfig(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "value", ["bert", "modernbert", "my/model", "./here", "bert-tiny", {"kind": "bert"}]
)
def test_a_model_named_by_text_is_answered_with_the_group_that_is_meant(value: object) -> None:
    with pytest.raises(UsageError, match=r"a\.yaml: model is .*: expected \{kind") as caught:
        RunConfig.from_layers([Layer("a.yaml", {"data": "d", "model": value})])
    advised = re.findall(r"\{kind: (?:config|checkpoint), .*?\}", str(caught.value))
    for text in advised:
        model = RunConfig.parse_with({"data": "d"}, [f"model={text}"]).model
        if isinstance(value, str) and len(advised) == 1:
            assert value in (getattr(model, "path", None), getattr(model, "model_type", None))
    assert advised
