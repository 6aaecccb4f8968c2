"""The loop of `fit`: look, label, train, again."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from udmlss.distributed import gather, is_rank_zero, run_on_rank_zero, synchronized
from udmlss.training.keeper import Keeper
from udmlss.training.progress import Progress
from udmlss.training.rounds import Look, Rounds
from udmlss.training.saver import Saver
from udmlss.training.state import Parts, Schedule
from udmlss.training.step import Step
from udmlss.types import Callback, Ended, FitResult, PseudoLabels, RoundReport


@dataclass(frozen=True)
class Run:
    """A training that is all set up; call it with a progress bar."""

    parts: Parts
    rounds: Rounds
    step: Step
    schedule: Schedule
    keeper: Keeper
    progress: Progress
    callbacks: Sequence[Callback]
    saver: Saver | None
    save_every: int

    def __call__(self, bar: tqdm) -> FitResult:
        """Train to the end, or until a callback, the keeper or the keyboard ends it."""
        progress = self.progress
        ended: Ended = "interrupt"
        watching = nullcontext() if self.saver is None else self.saver.watching()
        try:
            with watching:
                ended = self._train(bar)
        except KeyboardInterrupt:
            if progress.pseudo is not None and progress.steps:
                progress.end_round(progress.pseudo, None)
        except Exception as error:
            done, whole = progress.step, len(progress.history)
            kept = self.keeper.finish(done)
            error.add_note(f"`fit` had done {done} steps in {whole} whole rounds; the model is that of step {kept}.")
            raise
        kept = self.keeper.finish(progress.whole_rounds)
        return FitResult(tuple(progress.history), progress.pseudo, ended, progress.start, kept)

    def _train(self, bar: tqdm) -> Ended:
        progress, rounds = self.progress, self.rounds
        look: Look | None = None
        for number, n_steps in self.schedule.lengths(len(progress.history)):
            pseudo = self._clusters(look)
            look = None  # memory holds the embeddings of one look at a time
            self._pause(due=False)
            for images, index in synchronized(rounds.batches(pseudo, number, n_steps, done=len(progress.steps))):
                report, embeddings = self.step(images, pseudo.labels[index])
                progress.steps.append(report)
                self._remember(index, embeddings)
                bar.set_postfix_str(str(progress), refresh=False)
                bar.update()
                self._pause(due=progress.step % self.save_every == 0 or progress.step == self.schedule.steps)
            look = rounds.look_again(progress.remembered)
            self._pause(due=False)
            done = progress.end_round(pseudo, look.label_free)
            self.keeper.see(done.step, look.label_free)
            if ended := self._ended_by(done):
                return ended
        return "max_steps"

    def _clusters(self, look: Look | None) -> PseudoLabels:
        """Return the clusters of a new round, or those of the round that a resumed run goes on with."""
        pseudo = self.progress.pseudo
        if pseudo is None or look is not None:
            pseudo = self.rounds.label(look or self._first_look())
            self.progress.pseudo = pseudo
            self.parts.criterion.start_round(pseudo)
        return pseudo

    def _first_look(self) -> Look:
        look = self.rounds.look(self.rounds.first_round)
        self.progress.start = self.progress.latest = look.label_free
        self.keeper.see(0, look.label_free)
        if self.rounds.later_rounds == "remembered":
            self.progress.remembered = look.embeddings.clone()
        return look

    def _remember(self, index: Int64[Tensor, " b"], embeddings: Float[Tensor, "b d"]) -> None:
        remembered = self.progress.remembered
        if remembered is None:
            return
        taken = gather(index)
        if is_rank_zero():  # which clusters for all
            remembered[taken] = embeddings.cpu()

    def _ended_by(self, report: RoundReport) -> Ended | None:
        if run_on_rank_zero(lambda: True in [callback(report) for callback in self.callbacks]):
            return "callback"
        return "patience" if self.keeper.out_of_patience else None

    def _pause(self, *, due: bool) -> None:
        if self.saver is not None:
            self.saver.pause(self.progress.step, due=due)
