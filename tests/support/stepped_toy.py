"""The toy world captured and outlined, run with decisions of a test's own, and the same steps taken by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import contextmanager
from operator import attrgetter
from types import SimpleNamespace

import torch
from toy_world import CHUNK, ToyWorld, walk

from lightint_compile import capture
from lightint_compile.lowering import lower
from lightint_compile.options import LightintOptions
from lightint_compile.passes.ir.decision_points import PLAN
from lightint_compile.passes.pipeline import Pipeline


class Toy:
    """A captured and outlined toy world, and how to run what the passes make of it with decisions of the test's own."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, kind: type[ToyWorld] = ToyWorld, batch: int = 1, dynamic=None
    ) -> None:
        torch.manual_seed(0)
        self.model = kind().to(dtype).eval()
        draw = torch.Generator().manual_seed(1)
        self.noise, self.history = (torch.randn(batch, 4, f, 4, 6, generator=draw).to(dtype) for f in (4, 8))
        self.cameras = walk(12).to(dtype).repeat(batch, 1, 1, 1)
        sizes = dynamic or {"history": 2, "extrinsics": 1}
        with torch.no_grad():
            inputs = (self.noise, self.history, self.cameras)
            self.program = capture.trace(self.model, inputs, dynamic=sizes)
        Pipeline.parse("hoist-invariants,outline-regions").run(self.program, strict=True)

    def rewritten(self, text: str):
        program = self.program.snapshot()
        return program, Pipeline.parse(text).run(program, strict=True)

    def run(self, program, reused=None):
        """The driver's result, with the decision replaced by ``reused``; and the driver."""
        driver = lower(program, LightintOptions(delegate="eager"), {}).driver
        if reused is not None:
            plain = driver.decisions.bound[PLAN]

            def plan(*operands):
                index, record, *kept = plain(*operands)
                record.decision = SimpleNamespace(**vars(record.decision) | {"reused_steps": reused})
                record.checked = lambda step, drift, most: drift <= most
                record.own = ()
                return index, record, *kept

            driver._self.plan = plan
        return self.call(program, driver), driver

    def run_each(self, program, reused):
        """The result with steps of every element's own, how often each region ran, and the record of the chunk."""
        driver, records, calls = lower(program, LightintOptions(delegate="eager"), {}).driver, [], Counter()
        plain = driver.decisions.bound[PLAN]

        def plan(*operands):
            index, record, *kept = plain(*operands)
            record.own = tuple(dataclasses.replace(record.decision, reused_steps=steps) for steps in reused)
            records.append(record)
            return index, record, *kept

        def counted(name, region, *args):
            calls[name] += 1
            return region(*args)

        driver._self.plan = plan
        with driver.watched(counted):
            return self.call(program, driver), calls, records[0]

    def call(self, program, driver, element=slice(None)):
        """The driver's result for one element of the batch."""
        values = {"noise": self.noise[element], "history": self.history[element], "extrinsics": self.cameras[element]}
        args = [self._argument(node.name, program.input_of(node).path, values) for node in program.placeholders()]
        with torch.no_grad():
            return driver(*args)[0]

    def _argument(self, name, path, values):
        if name in values:
            return values[name]
        for text, tensor in values.items():
            if name.startswith(f"{text}_size"):
                return tensor.shape[int(name.rsplit("_", 1)[1])]
            if name.startswith(f"{text}_stride"):
                return tensor.stride(int(name.rsplit("_", 1)[1]))
        return attrgetter(path)(self.model)

    @torch.no_grad()
    def by_hand(self, reused=(), strategy="hold", element=slice(None)):
        """Euler steps of an element, or of all, in which ``reused`` predictions are what the strategy says."""
        cameras, history = self.cameras[element], self.history[element]
        chosen = self.model.select(cameras, history.shape[2])
        context = self.model.prefill(history[:, :, chosen], cameras[:, chosen], len(chosen))
        sigmas, latents, computed = self.model.sigmas, self.noise[element], []
        with later_blocks(self.model) as later:
            for step in range(4):
                later.reuse = strategy == "residual" and step in reused
                if step not in reused or later.reuse:
                    velocity = self.model.predict(latents, cameras[:, -CHUNK:], sigmas[step], context)
                    computed.append((sigmas[step], velocity))
                elif strategy == "extrapolate" and len(computed) > 1:
                    (before_at, before), (at, latest) = computed[-2:]
                    velocity = latest + (latest - before) * (sigmas[step] - at) / (at - before_at)
                else:
                    velocity = computed[-1][1]
                latents = latents + velocity * (sigmas[step + 1] - sigmas[step])
        return latents


@contextmanager
def later_blocks(model):
    """The blocks behind the first, which with ``reuse`` add what they added when they ran last."""
    (block,) = model.blocks[1:]
    later, plain = SimpleNamespace(reuse=False, residual=None), block.forward

    def wide(tokens):
        return tokens.to(torch.promote_types(tokens.dtype, torch.float32))

    def forward(tokens, time, context):
        if later.reuse:
            return (wide(tokens) + later.residual).to(tokens.dtype), None
        result = plain(tokens, time, context)
        later.residual = wide(result[0]) - wide(tokens)
        return result

    block.forward = forward
    try:
        yield later
    finally:
        block.forward = plain


class Guided(ToyWorld):
    """Guidance inside the module: a conditional and an unconditional prediction in every step."""

    def predict(self, latents, cameras, sigma, context):
        with_pose, without = (super(Guided, self).predict(latents, c, sigma, context) for c in (cameras, 0 * cameras))
        return without + 3.0 * (with_pose - without)
