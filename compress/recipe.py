"""What the user asked for, typed and validated. `compress.recipe_file` reads it."""

from typing import Literal

import msgspec

NF4_BLOCK = 64


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a recipe: unknown keys are errors."""


class Corpus(Section, frozen=True):
    """Which code, and which of it is trained on."""

    # `stdlib`, folders, installed packages, or `pypi:name==version` (fetched by pip, never run)
    corpus: list[str]
    holdout: list[str] = []  # projects never trained on, whatever their hash says
    test_fraction: float = 0.15  # of projects
    validation_fraction: float = 0.05
    split_seed: int = 11  # teacher and student must agree on it, so it is apart from the run's seed


class Data(Corpus, frozen=True):
    """The corpus of an analysis recipe, and how it becomes examples."""

    planted_share: float = 0.6  # of training units that offer a place; clean code stays the majority
    draws: int = 1  # how often each training unit is drawn, each time natural or with another defect
    max_units: int | None = None
    max_units_per_project: int | None = None  # so that one large project does not drown the others
    max_lines: int = 60  # longer units are not trained on (serving has no such limit)
    max_tokens: int = 768  # prompt and answer together
    prompt: str = "compact"  # a template of bundle/templates, or a path to one


class Shape(Section, frozen=True):
    """A decoder's dimensions, in transformers' own names."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 2048


class Scratch(Shape, frozen=True):
    """A Qwen2 model of its own, with a tokenizer trained on the training split."""

    vocab_size: int = 4096


class Train(Section, frozen=True):
    """One training loop, in the names of transformers.TrainingArguments."""

    learning_rate: float = 5e-5
    num_train_epochs: float = 1.0
    max_steps: int = -1  # optimiser steps; -1: by epochs
    per_device_train_batch_size: int = 8
    max_tokens_per_batch: int | None = None  # fill batches by tokens instead of by examples
    packing: bool = False  # several examples to a row; worth it on a GPU, not on a CPU
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    optim: str = "adamw_torch"
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bf16: bool = True
    torch_compile: bool = False  # worth its minute of compiling in long loops; needs a C++ compiler
    save_steps: int = 200

    def __post_init__(self) -> None:
        if self.packing and self.max_tokens_per_batch is None:
            raise ValueError("packing needs max_tokens_per_batch")


class Lora(Section, frozen=True):
    """A LoRA adapter that is trained and merged (peft)."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    quantize: Literal["nf4"] | None = None  # train it on a base in 4 bits (QLoRA)


class Teacher(Section, frozen=True):
    """A checkpoint with or without an adapter, or a model trained from scratch; and how it is corrected."""

    model: str | None = None  # a folder or a hub name
    adapter: str | None = None  # a LoRA adapter, merged before use
    scratch: Scratch | None = None
    train: Train | None = None  # from scratch: its training; else teacher correction on the domain
    lora: Lora | None = None  # correct through an adapter instead of all weights
    focus: Train | None = None  # from scratch only: a second loop, in which the decisions weigh most
    focus_max_tokens: int = 256  # and only units of this size are shown
    # from scratch only: weights that this recipe made before; training goes on from them with the second loop
    continue_from: str | None = None
    tokenizer_units: int = 20000  # from scratch only: how many training units the tokenizer reads

    def __post_init__(self) -> None:
        if (self.model is None) == (self.scratch is None):
            raise ValueError("teacher needs exactly one of `model` and `scratch`")
        if self.scratch is not None and self.train is None:
            raise ValueError("teacher.scratch needs teacher.train")
        if self.continue_from is not None and (self.scratch is None or self.focus is None):
            raise ValueError("teacher.continue_from needs teacher.scratch and teacher.focus")


class Student(Section, frozen=True):
    """Where the student starts: a checkpoint, pruned from the teacher, or from scratch."""

    model: str | None = None
    prune: Shape | None = None
    scratch: Shape | None = None

    def __post_init__(self) -> None:
        if sum(start is not None for start in (self.model, self.prune, self.scratch)) != 1:
            raise ValueError("student needs exactly one of `model`, `prune` and `scratch`")


class Ramp(Section, frozen=True):
    """A value that moves from one number to another over all optimiser steps."""

    start: float
    end: float
    type: Literal["linear", "cosine"] = "linear"


def require_alpha(alpha: float, schedule: Ramp | list[float] | None) -> None:
    """
    Raises:
        ValueError: the weight of the labels is not between 0 and 1 everywhere, or its schedule has no value.
    """
    if any(not 0.0 <= value <= 1.0 for value in [alpha, *_values(schedule)]):
        raise ValueError("alpha is the weight of what the labels say and lies between 0 and 1")
    if schedule == []:
        raise ValueError("alpha_schedule needs at least one value")


class HiddenLoss(Section, frozen=True):
    """Hidden states of the student's layers against the teacher's."""

    weight: float = 1.0
    kind: Literal["mse", "cosine"] = "mse"
    positions: Literal["answer", "all"] = "answer"  # those that predict an answer token, or the prompt's as well
    # student layers from 1: all by depth, some of them by depth, or each with its teacher layer
    layer_map: Literal["depth"] | tuple[int, ...] | dict[int, int] = "depth"

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError("weight must be above 0; leave the section out instead")


class AttentionLoss(Section, frozen=True):
    """What the student's layers attend to against the teacher's."""

    weight: float = 1.0
    kind: Literal["averaged_heads", "relations"] = "relations"
    layer_map: Literal["depth"] | tuple[int, ...] | dict[int, int] = "depth"

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError("weight must be above 0; leave the section out instead")


class TeacherAnswers(Section, frozen=True):
    """Sequence-level distillation: the teacher's own answers in the place of labels."""

    agree: bool = True  # only answers whose findings, by rule and line, are those that are known
    min_confidence: float = 0.0  # geometric mean of the probabilities of an answer's tokens, at least
    max_units: int | None = None  # of the training units that are asked about
    max_answer_tokens: int = 96
    max_tokens_per_batch: int = 16384  # prompts and answers with padding

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError("min_confidence is a probability and lies between 0 and 1")


class OnPolicy(Section, frozen=True):
    """A phase after distilling in which the student writes and the teacher judges every token of it."""

    train: Train
    temperature: float = 1.0  # of the student's sampling and of both softmaxes
    beta: float = 1.0  # 0: forward KL, 1: reverse KL, between them: the generalised JSD
    max_answer_tokens: int = 96

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError("beta lies between 0 (forward KL) and 1 (reverse KL)")
        if self.temperature <= 0:
            raise ValueError("temperature must be above 0")
        if self.train.max_tokens_per_batch is not None or self.train.packing:
            raise ValueError(
                "answers are not written yet when their batch is filled: "
                "set train.per_device_train_batch_size, and neither max_tokens_per_batch nor packing"
            )


class Distill(Section, frozen=True):
    """loss = alpha * CE + (1 - alpha) * T^2 * divergence(teacher, student) + hidden + attention, over answer tokens."""

    temperature: float = 3.0
    # of optimiser steps: values for equal spans, or from a start to an end; replaces temperature
    temperature_schedule: Ramp | list[float] | None = None
    alpha: float = 0.3  # the weight of CE
    alpha_schedule: Ramp | list[float] | None = None  # likewise; replaces alpha
    objective: Literal["forward_kl", "reverse_kl", "jsd", "mse"] = "forward_kl"
    beta: float = 0.5  # jsd only: towards 0 it is like forward KL, towards 1 like reverse KL
    teacher: Literal["cached", "online"] = "cached"  # soft labels made once, or the teacher in every step
    labels: Literal["top_k", "sampled"] = "top_k"  # which tokens a cached soft label keeps
    top_k: int = 64  # teacher logits kept a position; the rest is one tail bucket
    samples: int = 64  # with sampled labels: tokens drawn a position
    hidden: HiddenLoss | None = None
    attention: AttentionLoss | None = None
    teacher_answers: TeacherAnswers | None = None  # before: the teacher writes answers, which replace labels
    fine_tune: Train | None = None  # after: a loop on the labels alone
    on_policy: OnPolicy | None = None  # last: a loop on what the student itself writes
    baseline: bool = True  # also train the same student without a teacher, to know what distilling is worth

    def __post_init__(self) -> None:
        require_alpha(self.alpha, self.alpha_schedule)
        if any(temperature <= 0 for temperature in [self.temperature, *_values(self.temperature_schedule)]):
            raise ValueError("temperature must be above 0")
        if self.temperature_schedule == []:
            raise ValueError("temperature_schedule needs at least one value")
        if not 0.0 < self.beta < 1.0:
            raise ValueError("beta lies between 0 and 1; for its ends take the objective forward_kl or reverse_kl")
        if self.top_k < 1 or self.samples < 1:
            raise ValueError("top_k and samples must be at least 1")
        if self.teacher == "cached":
            self._require_cacheable()

    def _require_cacheable(self) -> None:
        online = "set `distill.teacher: online`"
        if self.hidden is not None or self.attention is not None:
            raise ValueError(f"soft labels hold no hidden states and no attention: {online}, or leave these losses out")
        if self.objective == "mse":
            raise ValueError(f"mse compares the logits of the whole vocabulary, soft labels hold a part: {online}")
        if self.labels == "sampled" and self.objective != "forward_kl":
            raise ValueError(
                f"tokens drawn from the teacher estimate forward_kl only, not {self.objective}: "
                f"take `labels: top_k`, or {online}"
            )
        if isinstance(self.temperature_schedule, Ramp):
            raise ValueError(
                "soft labels are exact at the temperatures they were made with: "
                f"give temperature_schedule a list, or {online}"
            )


def _values(schedule: Ramp | list[float] | None) -> list[float]:
    """The values that bound all of a schedule's."""
    return [schedule.start, schedule.end] if isinstance(schedule, Ramp) else schedule or []


class Recover(Section, frozen=True):
    """Training of what 4 bits lost: a low-rank change of the weights that is trained through their rounding."""

    train: Train
    max_kl: float = 0.01  # nats an answer token, student to 4-bit student: above it, recovery is run
    source: Literal["student", "teacher"] = "student"  # whose answers the 4-bit student learns to give
    r: int = 16
    lora_alpha: int = 32


class Quantize(Section, frozen=True):
    """bitsandbytes NF4 with double quantisation, in blocks of 64; lm_head and embeddings stay as they are."""

    type: Literal["nf4"] = "nf4"
    recover: Recover | None = None


class Onnx(Section, frozen=True):
    """How the ONNX export stores weights."""

    # int8 takes more memory traffic than int4 and far fewer instructions: for many answers at once on CPUs
    precision: Literal["int4", "int8", "fp32"] = "int4"
    int8_head: bool = True  # the last layer in 8 bits: small models lose most in it
    block_size: Literal[16, 32, 64, 128] = 32
    # prompts through a second graph with 8-bit weights and activations: more bytes, far fewer instructions on CPUs
    prefill: Literal["int8"] | None = None

    def __post_init__(self) -> None:
        if self.prefill is not None and self.precision != "int4":
            raise ValueError("prefill: int8 goes with precision: int4")

    @property
    def in_8_bits(self) -> bool:
        """Whether a graph has matrices and activations in 8 bits, and needs examples to be calibrated on."""
        return self.precision == "int8" or self.prefill is not None


class Cuda(Section, frozen=True):
    """How the ONNX export for NVIDIA's GPUs stores weights; keys, values and activations are in 16 bits there."""

    precision: Literal["int4", "fp16"] = "int4"
    int8_head: bool = True  # as in `Onnx`; for int4
    block_size: Literal[16, 32, 64, 128] = 32


class W4A16(Section, frozen=True):
    """How the vLLM export stores weights: 4 bits in groups that share a scale, activations in 16."""

    group_size: Literal[32, 64, 128] = 128
    calibration_examples: int = 256  # training examples GPTQ sees


class Export(Section, frozen=True):
    """Which forms of the student the bundle holds."""

    onnx: Onnx | None = Onnx()
    cuda: Cuda | None = None
    vllm: W4A16 | None = None


class Gate(Section, frozen=True):
    """The run fails when the shipped student is below any of these."""

    f1_retention: float = 0.0  # F1 of the ONNX student / F1 of the teacher, injected defects
    hygiene_f1_retention: float = 0.0
    answer_validity: float = 0.0
    length_retention: float = 0.0
    term_retention: float = 0.0


class Evaluate(Section, frozen=True):
    """How much held-out code the scores rest on."""

    natural_units: int = 400
    planted_units: int = 400
    validation_factor: int = 1  # calibration and thresholds rest on so many times as many units of validation code
    max_tokens_per_batch: int = 16384  # of checkpoints, prompts and answers with padding; ONNX answers singly
    max_answer_tokens: int = 96
    precision: float = 0.7  # of shown findings on validation code; sets the thresholds per rule
    # findings shown on a hundred clean units of validation code, at most; few, because other projects have more
    false_per_100_clean: float = 0.25
    gate: Gate = Gate()


class Recipe(Section, frozen=True, kw_only=True):
    """Everything a run depends on. Without `student` the run ends with the teacher and its scores."""

    task: Literal["analysis"] = "analysis"
    name: str
    seed: int = 7
    data: Data
    teacher: Teacher
    student: Student | None = None
    distill: Distill = Distill()
    train: Train = Train()
    quantize: Quantize | None = Quantize()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()

    def __post_init__(self) -> None:
        forms = (self.quantize, self.export.onnx, self.export.cuda, self.export.vllm)
        if self.student is not None and not any(forms):
            raise ValueError(
                "a bundle needs a form of the student to serve: "
                "set `export.onnx`, `export.cuda`, `export.vllm` or `quantize`"
            )
        shape = self.student and (self.student.prune or self.student.scratch)
        if shape and self.quantize and (shape.hidden_size % NF4_BLOCK or shape.intermediate_size % NF4_BLOCK):
            raise ValueError(
                f"NF4 quantises blocks of {NF4_BLOCK} weights: the student's hidden_size and intermediate_size "
                f"must be multiples of {NF4_BLOCK}, or set `quantize: null`"
            )
