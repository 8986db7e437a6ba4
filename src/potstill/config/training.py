"""Config sections of stage 2: the loss and the training loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.config.layers import Attention, Hidden
from potstill.config.section import Section


class TargetsConfig(Section):
    kind: Literal["topk", "sampled"] = "topk"
    """What is kept of the teacher's probabilities: the k largest and the mass of the rest, or
    tokens drawn from them, which take less room and are right on average."""

    k: int = Field(64, ge=1, le=4096)
    """How many probabilities are kept at each position; at most what an endpoint tells, where the
    teacher is one (20 at OpenAI). For `topk`."""

    num_draws: int = Field(50, ge=1, le=4096)
    """How many tokens are drawn at each position. For `sampled`."""

    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Values of `loss.temperature` that will be tried, so that none needs scoring again. For
    `topk`: two bytes a token for each."""

    max_dropped: float = Field(0.05, ge=0, le=1)
    """Most of the teacher's probability, on average, that may be on tokens that the student's
    vocabulary has not."""

    @model_validator(mode="after")
    def _draws_have_one_temperature(self) -> TargetsConfig:
        if self.kind == "sampled" and self.temperatures:
            raise ValueError(
                "temperatures are for kind: topk; draws are made at loss.temperature, and no "
                "others follow from them"
            )
        return self


LossKind = Literal[
    "sft",
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "total_variation",
]


class LossConfig(Section):
    kind: LossKind = "sft"
    """`sft` learns the teacher's text. The others learn its probabilities as well: `forward_kl`
    covers all that the teacher may say, `reverse_kl` keeps to what it surely says, `jsd`, the
    skewed and the adaptive ones lie between, `total_variation` bounds what one answer can cost."""

    beta: float = Field(0.5, ge=0, le=1)
    """Where `jsd` lies between forward KL (0) and reverse KL (1)."""

    normalized: bool = True
    """Divide `jsd` by beta * (1 - beta), so that its size does not depend on beta; false is the
    raw form of the literature."""

    alpha: float = Field(0.1, ge=0, lt=1)
    """How much of the one distribution is mixed into the other in `skew_forward_kl` and
    `skew_reverse_kl`; 0 is the KL without skew."""

    temperature: float = Field(1.0, gt=0)
    """Softens teacher and student in the loss. Not used by `sft`."""

    sft_weight: float = Field(0.5, ge=0, le=1)
    """Share of the plain next-token loss mixed into a loss on probabilities."""

    targets: TargetsConfig = TargetsConfig()
    """How the teacher's probabilities are kept on disk."""

    hidden: Hidden = None
    """Learn the teacher's hidden states as well: `cosine`, `mse`, or a mapping. The teacher's
    weights then stay in memory while the student trains; both need one tokenizer."""

    attention: Attention = None
    """Learn relations among tokens in the teacher's attention as well: `qkv`, `value`, or a
    mapping. Needs the same as `hidden`."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Every temperature that the kept probabilities must be right at, ascending."""
        return tuple(sorted({self.temperature, *self.targets.temperatures}))

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher runs beside the student in training."""
        return self.hidden is not None or self.attention is not None

    @model_validator(mode="after")
    def _knobs_belong_to_the_kind(self) -> LossConfig:
        belongs = {
            "beta": ("jsd",),
            "normalized": ("jsd",),
            "alpha": ("skew_forward_kl", "skew_reverse_kl"),
        }
        for knob, kinds in belongs.items():
            value = getattr(self, knob)
            if self.kind not in kinds and value != type(self).model_fields[knob].default:
                raise ValueError(
                    f"loss.{knob} = {value} has no effect with loss.kind: {self.kind}; it belongs "
                    f"to {' and '.join(kinds)}"
                )
        return self

    @model_validator(mode="after")
    def _samples_serve_forward_kl_alone(self) -> LossConfig:
        kept = self.targets.kind
        if kept != "topk" and self.kind not in ("sft", "forward_kl"):
            raise ValueError(
                f"loss.kind: {self.kind} needs the probability of each token, which "
                f"loss.targets.kind: {kept} does not keep; use forward_kl, or targets of kind topk"
            )
        return self


class AdapterConfig(Section):
    kind: Literal["lora", "qlora"] = "lora"
    """`lora`: low-rank updates beside frozen weights. `qlora`: the same, with the frozen weights
    in 4 bits, which takes an eighth to a quarter of their memory and costs some of their
    quality; needs `pip install "potstill[qlora]"`."""

    r: int = Field(16, ge=1)
    """Rank of the updates."""

    alpha: float = Field(32.0, gt=0)
    """Scale of the updates: they are multiplied by alpha / r."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the updates."""


def _as_adapter(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Adapter = Annotated[
    AdapterConfig | None,
    BeforeValidator(
        _as_adapter, json_schema_input_type=Literal["lora", "qlora"] | AdapterConfig | None
    ),
]


class TrainConfig(Section):
    learning_rate: float = Field(2.0e-5, gt=0, lt=1)
    """Peak learning rate; 2e-4 by default with an adapter, whose few weights move further."""

    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    """`adamw` keeps two numbers beside each weight, `sgd` one, `adafactor` one for each row and
    column of a matrix (its learning rate is a share of a weight's size: 1e-3 to 1e-2)."""

    num_epochs: float = Field(3, gt=0)
    """Passes over the accepted records. Fractions are allowed."""

    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps, instead of what num_epochs gives."""

    batch_size: int = Field(16, ge=1)
    """Records per optimizer step, over all devices."""

    micro_batch_size: int | None = Field(None, ge=1)
    """Records computed at once; the rest of a step is accumulated. All of them by default."""

    micro_batch_tokens: int | None = Field(None, ge=8)
    """Tokens computed at once, padding included; a longer record is computed alone. By default
    2,048 where records can be packed (8,192 on a GPU), else no limit."""

    packing: Literal["auto"] | bool = "auto"
    """Compute records one behind the other without padding, none of which sees another; `auto`
    where the model's family can and, on a CPU, there would be more than a little padding. What
    is learned is the same."""

    order: Literal["by_length", "random"] = "by_length"
    """Records of like length share a step, which saves padding; or steps are drawn at random,
    which costs nothing where records are packed."""

    processes: int = Field(1, ge=1, le=64)
    """Processes that train together, each on a share of every step: one for each GPU, or on
    CPU cores."""

    shard: bool = False
    """With several processes: each keeps only its part of the weights, gradients and optimizer
    numbers (FSDP2), for a student that does not fit on one device. Slower where it does."""

    max_tokens: int = Field(2048, ge=8)
    """Longest training record, prompt and answer. Longer ones are rejected, not cut."""

    adapter: Adapter = None
    """Train a LoRA adapter instead of all weights: `lora`, `qlora`, or a mapping."""

    freeze_embeddings: bool = False
    """Keep the word vectors (and a head tied to them) as they are; saves time on small data."""

    freeze_layers: int = Field(0, ge=0)
    """Keep the lowest so many layers as they are; saves time and memory. Not with an adapter."""

    precision: Literal["auto", "fp32", "bf16", "autocast"] = "auto"
    """Number format: fp32, weights in bf16, or fp32 weights with bf16 arithmetic.
    `auto` takes autocast where the device computes in bf16. The trained weights are stored
    in the format of the arithmetic."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""

    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""

    weight_decay: float = Field(0.01, ge=0)
    """Weight decay, on matrices only."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are scaled down to it."""

    max_loss_jump: float | None = Field(4.0, gt=0)
    """Stop at a step whose loss is so many nats above the median of the last 50 steps and four
    times as high; null goes on."""

    ema: float | None = Field(None, gt=0, lt=1)
    """Keep a moving average of the weights, with this decay (0.99 spans about a hundred steps);
    it is what validation judges and what is saved. None by default."""

    eval_steps: int | None = Field(None, ge=1)
    """Steps between two looks at the validation loss; a tenth of the run by default."""

    early_stopping: bool = True
    """Stop when the validation loss has not fallen for `patience` looks."""

    patience: int = Field(3, ge=1)
    """Looks at the validation loss without a new best before training stops."""

    gradient_checkpointing: bool = False
    """Compute activations twice to keep fewer in memory."""

    track: tuple[Literal["mlflow", "trackio"], ...] = ()
    """Trackers that are told every step's figures, beside metrics.jsonl; each is set up by its
    own environment variables (`MLFLOW_TRACKING_URI`, `TRACKIO_DIR`)."""

    seed: int = 0
    """Order of the records, initial adapter weights, dropout."""

    @model_validator(mode="before")
    @classmethod
    def _adapters_learn_faster(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("adapter") and "learning_rate" not in tree:
            return {**tree, "learning_rate": 2.0e-4}
        return tree

    @model_validator(mode="after")
    def _parts_of_weights_are_several(self) -> TrainConfig:
        if self.shard and self.processes == 1:
            raise ValueError(
                "train.shard: true shares the weights among processes, and train.processes is 1"
            )
        if self.shard and self.optimizer == "adafactor":
            raise ValueError(
                "train.shard: true and optimizer: adafactor do not go together: it keeps numbers "
                "for rows and columns of whole matrices; use adamw or sgd"
            )
        if self.shard and self.adapter is not None and self.adapter.kind == "qlora":
            raise ValueError(
                "train.shard: true and adapter: qlora do not go together: weights of 4 bits are "
                "not shared out; use adapter: lora"
            )
        return self

    @property
    def learned(self) -> dict[str, Any]:
        """The keys that decide what is learned. The others say how it is computed: a training
        goes on when they change."""
        how = {
            *("packing", "micro_batch_size", "micro_batch_tokens", "gradient_checkpointing"),
            *("processes", "shard", "max_loss_jump", "track"),
        }
        return self.model_dump(mode="json", exclude=how)
