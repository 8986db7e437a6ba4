"""The tutorial's job, and our own, become one config or one list of problems."""

from pathlib import Path

import pytest
import yaml

from potstill.config import DistillConfig
from potstill.dialects import from_distillation_job, read_job, slug, understand
from potstill.entities import DistillationJob, JobStatus
from potstill.errors import ConfigError

CANARY = "sk-canary-77aa01"


def job(**changes):
    given = {
        "teacher_model": "deepseek-v3",
        "student_model": "phi-4-mini",
        "training_data": "./training_data.jsonl",
        "validation_data": "./validation_data.jsonl",
        "task_type": "conversation",
        "hyperparameters": {
            "learning_rate": 2e-5,
            "batch_size": 2,
            "num_epochs": 3,
            "temperature": 0.7,
        },
    }
    return DistillationJob(**{**given, **changes})


def problems_of(**changes):
    with pytest.raises(ConfigError) as caught:
        from_distillation_job(job(**changes))
    return str(caught.value)


def test_the_tutorials_job_becomes_a_config(tmp_path):
    dialect = from_distillation_job(job(), base=tmp_path)
    config = dialect.config
    assert (config.teacher.source, config.student.source) == ("deepseek-v3", "phi-4-mini")
    assert config.train_data == (tmp_path / "training_data.jsonl",)
    assert config.data.validation == tmp_path / "validation_data.jsonl"
    assert (config.train.batch_size, config.train.num_epochs) == (2, 3)
    assert config.generation.temperature == 0.7
    assert not dialect.named


def test_temperature_does_not_soften_a_loss_on_text():
    assert from_distillation_job(job()).config.loss.temperature == 1.0


def test_temperature_softens_a_loss_on_probabilities_too_and_says_so():
    dialect = from_distillation_job(job(settings={"loss": {"kind": "forward_kl"}}))
    assert dialect.config.loss.temperature == dialect.config.generation.temperature == 0.7
    assert "generation.temperature and loss.temperature" in " ".join(dialect.notes)


@pytest.mark.parametrize("task", ["NLI", "nlu_qa", "Math", "translation"])
def test_tasks_are_known_in_any_case_and_by_azures_names(task):
    known = {"nlu_qa": "qa"}.get(task, task.lower())
    assert from_distillation_job(job(task_type=task)).config.task == known


def test_all_problems_are_named_with_the_nearest_names():
    text = problems_of(
        task_type="sumarization",
        hyperparameters={"lerning_rate": 1, "batch_size": 0, "temprature": 0.7},
        settings={"los": {}, "student": "x"},
    )
    assert "task_type: 'sumarization' is not known; did you mean summarization?" in text
    assert "hyperparameters.lerning_rate: no such hyperparameter; did you mean learning_r" in text
    assert "hyperparameters.temprature: no such hyperparameter; did you mean temperature?" in text
    assert "hyperparameters.batch_size: Input should be greater than or equal to 1, got 0" in text
    assert "settings.los: no such section; did you mean loss?" in text
    assert "settings.student: this is an argument of its own" in text


def test_a_wrong_argument_has_the_nearest_name_and_the_missing_are_named():
    with pytest.raises(ConfigError) as caught:
        DistillationJob(teacher_modle="x", student_model="y", training_data="z")
    text = str(caught.value)
    assert "teacher_modle: no such argument; did you mean teacher_model?" in text
    assert "task_type: this argument is required" in text


def test_a_reference_to_a_key_stays_and_a_key_in_clear_does_not():
    kept = from_distillation_job(job(teacher_key="env:MY_KEY"))
    assert kept.config.teacher.key == "env:MY_KEY" and not kept.secrets
    clear = from_distillation_job(job(teacher_key=CANARY))
    assert clear.config.teacher.key == "env:POTSTILL_TEACHER_KEY"
    assert CANARY not in repr(clear) + repr(job(teacher_key=CANARY)) + str(clear.notes)


def test_a_wrong_argument_beside_a_key_does_not_show_it():
    with pytest.raises(ConfigError) as caught:
        DistillationJob(teacher_key=CANARY, training_data=3)
    assert CANARY not in str(caught.value)


def test_our_own_config_stays_what_it_is_with_places_made_absolute(tmp_path):
    config = DistillConfig(name="faq", task="qa", teacher="t", student="./s", train_data="a.jsonl")
    dialect = understand(config, base=tmp_path)
    assert dialect.config.train_data == (tmp_path / "a.jsonl",)
    assert Path(dialect.config.student.source) == tmp_path / "s"
    assert (dialect.config.name, dialect.model_name, dialect.named) == ("faq", "faq", True)


def test_a_job_file_may_be_our_own(tmp_path, monkeypatch):
    tree = {"name": "faq", "task": "qa", "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    config = read_job("distill.yaml", ["train.num_epochs=1"]).config
    assert (config.train.num_epochs, config.train_data) == (1, (tmp_path / "a.jsonl",))


def test_what_is_no_job_is_refused():
    with pytest.raises(ConfigError, match="a list cannot be submitted"):
        understand([])


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("microsoft/Phi-4-mini", "phi-4-mini"),
        ("./models/My Student/", "my-student"),
        ("a/b.gguf", "b"),
        ("../..", "student"),
        ("模型", "student"),
    ],
)
def test_any_place_makes_a_name(place, name):
    assert slug(place) == name


def test_azures_status_names_print_as_text():
    assert f"{JobStatus.CANCEL_REQUESTED}" == str(JobStatus.CANCEL_REQUESTED) == "CancelRequested"
    assert len(JobStatus) == 11
