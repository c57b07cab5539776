"""The training itself: three phases one after the other, then the judgement and the files."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightint_compile.models.maze.hashing import draw
from lightint_compile.models.worldplay.context import ContextSelector
from lightint_compile.models.worldplay.transformer import WorldPlayTransformer
from lightint_compile.training import judging
from lightint_compile.training.artifact import write_artifact
from lightint_compile.training.clock import PhaseClock, Session
from lightint_compile.training.codec_phase import codec_loss, frame_pool
from lightint_compile.training.generation import generate
from lightint_compile.training.logbook import Logbook
from lightint_compile.training.network import Network
from lightint_compile.training.objectives import distillation_loss, flow_loss
from lightint_compile.training.plan import PHASES
from lightint_compile.training.pool import Pool
from lightint_compile.training.ranks import Ranks
from lightint_compile.training.sequences import make_sequences
from lightint_compile.training.state import State, follow

SAVED_EVERY = 150.0
"""Seconds between checkpoints."""

_OWN_FIRST_STEP = 2
"""Step of the sampler from which the model's own past is made: early ones would show something else."""

_DRAWS = (*PHASES, "own")
"""What draws random numbers of its own: the phases, and the making of the model's own past."""

Loss = Callable[[PhaseClock, torch.Generator], Tensor]


@dataclass
class Training:
    """One session of a training: its state, processes, files and clock."""

    state: State
    ranks: Ranks
    book: Logbook
    session: Session
    out: Path
    compiled: bool

    def __post_init__(self) -> None:
        size, device = self.state.size, self.ranks.device
        self.network = Network(self.state.transformer, size, self.compiled)
        self.selector = ContextSelector(size.transformer).to(device)
        self._saved = time.monotonic()

    def run(self) -> bool:
        """Run the phases that are left, and after the last judge and write the model; whether all is done."""
        done = self.phases()
        if done and self.ranks.is_first:
            self._finish()
        return done

    def phases(self) -> bool:
        """Run the phases that are left; whether all are done."""
        phases = {"codec": self._codec, "flow": self._flow, "distil": self._distil}
        for name in PHASES:
            if name not in self.state.progress.done and not phases[name]():
                self._save()
                self.book.say("the session is over; go on with --resume")
                return False
        return True

    def _codec(self) -> bool:
        plan, codec = self.state.plan, self.state.codec.train()
        if self.ranks.device.type == "cuda":
            codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        started = time.monotonic()
        drawn = frame_pool(
            self.state.size.pixels, plan.seed, self.ranks.rank, plan.codec_mazes, plan.codec_frames, self.ranks.device
        )
        count = plan.codec_mazes * plan.codec_frames
        self.book.say(f"rendered {count} frames for the codec in {time.monotonic() - started:.1f} s")

        def loss(clock: PhaseClock, generator: torch.Generator) -> Tensor:
            return codec_loss(codec, drawn(plan.codec_batch, generator), generator)

        done = self._phase("codec", codec, plan.codec_rate, loss)
        self.ranks.same(codec)
        return done

    def _flow(self) -> bool:
        pool = self._pool()
        plan, state = self.state.plan, self.state

        def loss(clock: PhaseClock, generator: torch.Generator) -> Tensor:
            self._renew(pool, clock, state.average, clock.fraction >= plan.own_from)
            batch = pool.draw(plan.batch, plan.own_share, generator)
            return flow_loss(self.network, batch, self._chunk(clock.steps, clock.fraction < 0.5), generator)

        return self._phase("flow", state.transformer, plan.flow_rate, loss, state.average)

    def _distil(self) -> bool:
        pool = self._pool()
        plan, state = self.state.plan, self.state
        if not state.progress.steps.get("distil"):
            for each in (state.student, state.student_average):
                each.load_state_dict(state.average.state_dict())
        student, teacher = self.network.shared(state.student), self.network.shared(state.average)

        def loss(clock: PhaseClock, generator: torch.Generator) -> Tensor:
            self._renew(pool, clock, state.student_average, True)
            batch = pool.draw(plan.batch, plan.own_share, generator)
            return distillation_loss(student, teacher, batch, self._chunk(clock.steps, False), generator)

        return self._phase("distil", state.student, plan.distil_rate, loss, state.student_average)

    def _phase(self, name: str, module: nn.Module, rate: float, loss: Loss, average: nn.Module | None = None) -> bool:
        """Minimise a loss until the phase is done or the session over; whether it is done."""
        plan, progress = self.state.plan, self.state.progress
        steps, seconds = progress.steps.get(name, 0), progress.seconds.get(name, 0.0)
        clock = PhaseClock(plan.limit(name), self.session, self.ranks, steps, seconds)
        optimiser, parameters = self.state.optimisers[name], list(module.parameters())
        with self.book.phase(name) as bar:
            while clock.goes_on():
                generator = self._generator(name, clock.steps)
                now = rate * _schedule(clock, plan.warmup)
                for group in optimiser.param_groups:
                    group["lr"] = now
                with self._precision():
                    value = loss(clock, generator)
                value.backward()
                self.ranks.average_gradients(parameters)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                clock.count()
                if average is not None:
                    follow(average, module, clock.steps, plan.average)
                progress.steps[name], progress.seconds[name] = clock.steps, clock.seconds
                bar.step(clock, value, now)
                self._save_now_and_then()
        if clock.is_done:
            progress.done.append(name)
            self._save()
        return clock.is_done

    def _pool(self) -> Pool:
        state, plan = self.state, self.state.plan
        codec = state.codec.eval()
        started = time.monotonic()

        def make(seeds: Tensor) -> object:
            with self._precision():
                return make_sequences(state.size, codec, self.selector, seeds.to(self.ranks.device), plan.frames)

        pool = Pool(make, plan.seed, self.ranks.rank, plan.blocks, plan.block, state.progress.renewed)  # type: ignore[arg-type]
        pool.own = state.own
        count = plan.blocks * plan.block * plan.frames
        self.book.say(f"rendered and encoded {count} frames in {time.monotonic() - started:.1f} s")
        return pool

    def _renew(self, pool: Pool, clock: PhaseClock, average: WorldPlayTransformer, own: bool) -> None:
        plan = self.state.plan
        if clock.steps and clock.steps % plan.renewed_every == 0:
            pool.renew()
            self.state.progress.renewed = pool.renewed
        if own and (pool.own is None or clock.steps % plan.own_every == 0):
            walks = pool.first_block()
            truth = walks.latents.float()
            generator = self._generator("own", clock.steps)
            noise = torch.randn(truth.shape, generator=generator, device=truth.device)
            network = self.network.shared(average)
            given = (truth[:, :, 0], walks.cameras, walks.context, noise)
            made = generate(network, *given, anchor=truth, first_step=_OWN_FIRST_STEP)
            pool.own = self.state.own = made.to(torch.bfloat16)

    def _chunk(self, step: int, early: bool) -> int:
        """The chunk of a step, the same for all processes; short pasts are cheap and come more often early."""
        plan, chunk = self.state.plan, self.state.size.transformer.chunk_frames
        keys = torch.tensor(plan.seed)
        last = 5 if early and int(draw(keys, 61, step)) % 2 else plan.frames // chunk
        return int(draw(keys, 62, step)) % last

    def _generator(self, name: str, step: int) -> torch.Generator:
        """Random numbers that are a function of the seed, the process, the phase and the step."""
        key = int(draw(torch.tensor(self.state.plan.seed), self.ranks.rank, _DRAWS.index(name), step))
        return torch.Generator(self.ranks.device).manual_seed(key)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        cuda = self.ranks.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()

    def _save_now_and_then(self) -> None:
        if self.ranks.is_first and time.monotonic() - self._saved > SAVED_EVERY:
            self._save()

    def _save(self) -> None:
        if self.ranks.is_first:
            self.state.save(self.out)
            self.book.draw()
        self._saved = time.monotonic()

    def _finish(self) -> None:
        """Judge the model with and without distillation, write the better one, the card and the strip."""
        state, plan = self.state, self.state.plan
        codec, device = state.codec.eval(), self.ranks.device
        models = {"flow": state.average, "distil": state.student_average}
        with torch.no_grad(), self._precision():
            given = (plan.frames, plan.judged_mazes, device)
            found = judging.families(state.size, codec, self.selector, *given)
            networks = {name: self.network.shared(each) for name, each in models.items()}
            scores = {name: judging.judge(each, codec, found) for name, each in networks.items()}
            best = max(scores, key=lambda name: sum(each["model psnr"] for each in scores[name].values()))
            rollouts = {name: [judging.rolled(each, kind) for kind in found] for name, each in networks.items()}
            judging.strip(str(self.out / "strip.png"), codec, found, rollouts)
        facts = {"shipped": best, "processes": self.ranks.count, "scores": scores}
        folder = write_artifact(self.out / "weights", state, models[best], facts)
        self.book.draw()
        for name, table in scores.items():
            for family, row in table.items():
                self.book.say(f"{name}, {family}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))
        self.book.say(f"written: {folder} ({best}), {self.out / 'strip.png'}, {self.out / 'loss.png'}")


def _schedule(clock: PhaseClock, warmup: int) -> float:
    """A linear start over `warmup` steps, then half a cosine down to a twentieth."""
    return min(1.0, (clock.steps + 1) / warmup) * (0.05 + 0.475 * (1.0 + math.cos(math.pi * clock.fraction)))
