"""What a teacher's licence says on training with its outputs is found wherever it is served."""

import pytest

from potstill.config import TeacherConfig
from potstill.models.catalog import list_models
from potstill.models.terms import terms_of


def test_terms_of_a_model_of_the_catalogue_carry_the_month_in_which_they_were_read():
    terms = terms_of(TeacherConfig(source="deepseek-v3"))
    assert (terms.train_on_outputs, terms.text) == ("yes", "")
    assert terms.licence.startswith("DeepSeek")
    assert all(ref.terms.as_of for ref in list_models())


@pytest.mark.parametrize(
    ("teacher", "workspace"),
    [
        ({"source": "llama-3-8b"}, {}),
        ({"url": "http://host/v1", "model": "meta-llama/Meta-Llama-3-8B-Instruct"}, {}),
        ({"source": "mine"}, {"mine": {"url": "http://host/v1", "model": "llama-3-8b-instruct"}}),
        ({"source": "llama-3-8b"}, {"llama-3-8b": "http://host/v1"}),
        (
            {"source": "mine"},
            {"mine": {"url": "http://host/v1", "terms": {"train_on_outputs": "no"}}},
        ),
    ],
    ids=["by name", "behind an endpoint", "in a workspace", "renamed", "as the workspace says"],
)
def test_a_model_that_forbids_it_is_known_by_any_of_its_names(teacher, workspace):
    terms = terms_of(TeacherConfig(**teacher), workspace=workspace)
    assert terms.train_on_outputs == "no"
    assert "forbid training on its outputs" in terms.text


def test_a_provider_is_known_by_its_host():
    terms = terms_of(TeacherConfig(url="https://api.openai.com/v1", model="gpt-99"))
    assert (terms.teacher, terms.train_on_outputs) == ("gpt-99", "conditions")
    assert "limit training on its outputs" in terms.text


def test_what_nobody_has_read_is_unknown_and_stops_nothing():
    terms = terms_of(TeacherConfig(url="http://host.test/v1", model="some-model"))
    assert (terms.train_on_outputs, terms.licence, terms.as_of, terms.text) == ("unknown",) + (
        "",
    ) * 3
