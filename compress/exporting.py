"""The stages that make what is shipped of a student: NF4, W4A16 and ONNX, as the recipe asks for them."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from compress import ranks
from compress.data.tokens import TokenDataset, prompt_template
from compress.evaluate import Candidate
from compress.export.int8 import CALIBRATION_EXAMPLES
from compress.export.onnx import export_onnx, export_onnx_for_cuda
from compress.export.vllm import export_vllm
from compress.quantize import quantize_nf4
from compress.recipe import Onnx, Recipe, Recover, Section
from compress.recover import read_recovery, recover_nf4, recovery_line
from compress.stages import Run

Dataset = Callable[[], TokenDataset]


class Exporting:
    """A recipe's exports, each a stage in one run folder."""

    def __init__(self, recipe: Recipe, run: Run, dataset: Dataset, console: Console) -> None:
        """
        Args:
            dataset: what the student learnt from, read when it is called.
        """
        self.recipe, self.run_folder, self.dataset, self.console = recipe, run, dataset, console

    def run(
        self, student: Path, made_by: str, teacher: Path, validation: Dataset, candidates: list[Candidate]
    ) -> dict[str, tuple[Path, str]]:
        """Each export's folder and how it stores weights, by the stage that makes it; ONNX comes last.

        Args:
            student: the unquantised checkpoint.
            made_by: the stage that made it.
            teacher: a checkpoint.
            validation: code that recovery is judged on, read when it is called.
            candidates: each export is added, to be evaluated.
        """
        exports: dict[str, tuple[Path, str]] = {}
        if self.recipe.quantize is not None:
            folder = self.run_folder.stage(
                "quantize",
                after=[made_by],
                inputs={"quantize": self.recipe.quantize.type},
                action=lambda out: quantize_nf4(student, self.dataset(), out / "nf4"),
            )
            name = "quantize"
            if self.recipe.quantize.recover is not None:
                name, options = "recover", self.recipe.quantize.recover
                folder = self._recover(teacher, student, folder, validation, options)
            exports[name] = (folder / "nf4", "nf4")
            candidates.append(Candidate("student, NF4", folder / "nf4", student))

        def export(stage: str, options: Section, storage: str, name: str, write: Callable[[Path], None]) -> None:
            made = self.run_folder.stage(
                stage, after=[made_by], inputs={stage: options}, action=lambda out: write(out / stage)
            )
            exports[stage] = (made / stage, storage)
            candidates.append(Candidate(f"student, {name}", made / stage, student))

        vllm, cuda, onnx = self.recipe.export.vllm, self.recipe.export.cuda, self.recipe.export.onnx
        if vllm is not None:
            export("vllm", vllm, "w4a16", "W4A16", lambda out: export_vllm(student, self.dataset(), vllm, out))
        if cuda is not None:
            name = f"ONNX {cuda.precision} for CUDA"
            export("cuda", cuda, cuda.precision, name, lambda out: export_onnx_for_cuda(student, cuda, out))
        if onnx is not None:
            name = f"ONNX {onnx.precision}"
            export(
                "onnx", onnx, onnx.precision, name, lambda out: export_onnx(student, onnx, out, self._examples(onnx))
            )
        return exports

    def _examples(self, onnx: Onnx) -> list[list[int]]:
        """What an ONNX export is calibrated on, as token ids."""
        return self.dataset().spread(CALIBRATION_EXAMPLES) if onnx.in_8_bits else []

    def _recover(self, teacher: Path, student: Path, quantised: Path, validation: Dataset, options: Recover) -> Path:
        def recover(out: Path) -> None:
            ranks.require_one("recovering what 4 bits lost")
            recover_nf4(
                student, teacher, quantised / "nf4", self.dataset(), validation(), options, self.recipe.seed, out
            )

        folder = self.run_folder.stage(
            "recover",
            after=["data", "teacher", "quantize"],
            inputs={
                "recover": options,
                "seed": self.recipe.seed,
                "prompt": prompt_template(self.recipe.data.prompt),
            },
            action=recover,
        )
        self.console.print(recovery_line(read_recovery(folder), options))
        return folder
