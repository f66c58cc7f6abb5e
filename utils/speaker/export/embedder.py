"""A trained recognizer as one graph of ordinary operations, samples to embeddings, and as the bytes of a file.

The graph is that of `torch.export`. TorchScript is compiled from the same graph, not traced: a trace would keep the
length of its example.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch._decomp import decomposition_table
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from models.engine.backends import set_backend
from models.engine.decomposed import LONGEST
from utils.features.mel import LogMel
from utils.features.recipe import MelRecipe
from utils.speaker.recognizer import SpeakerRecognizer

Run = Callable[..., list[NDArray[Any]]]
"""The inputs of a graph, in their order, to its outputs."""

METADATA = "tacomamba"
"""The name of the metadata in an ONNX file; the extra file of the other formats is called so too, with .json."""

INPUT, OUTPUT = "samples", "embedding"


class Graph(NamedTuple):
    """A graph, and the names of its inputs and outputs in a file of a format that has names."""

    program: ExportedProgram
    inputs: Sequence[str]
    outputs: Sequence[str]


class Plan(NamedTuple):
    """A file to write: its graph and metadata, how it is checked, and what is reported of it."""

    graph: Graph
    metadata: dict[str, Any]
    difference: Callable[[Run], float]  # the largest one of a number of an embedding from the recognizer's
    facts: dict[str, Any]


class Embedder(nn.Module):
    """What a file needs of a recognizer: log-mels, the model without vectors of training speakers, the back end."""

    def __init__(self, recognizer: SpeakerRecognizer) -> None:
        super().__init__()
        self.log_mel = LogMel(recognizer.recipe)
        self.model = copy.deepcopy(recognizer.model).cpu()
        self.model.classifier = None
        set_backend(self.model, "decomposed")
        back_end = recognizer.back_end.to_tensors()
        self.register_buffer("center", back_end["center"])
        self.register_buffer("whitening", back_end["whitening"])

    def finish(self, embeddings: Tensor) -> Tensor:
        """Embeddings (b, e) of the model -> those of the recognizer, of length 1."""
        return F.normalize((F.normalize(embeddings, dim=-1) - self.center) @ self.whitening, dim=-1)


class SamplesToEmbedding(Embedder):
    """Samples (b, s) float32 at the recipe's rate -> embeddings (b, e) of length 1, those of the recognizer.

    A recording of more than `longest` frames is embedded in windows, as `SpeakerRecognizer.embed_mels` does. All
    windows of all recordings form one batch, whose spectrograms are a multiple of `grid` frames long, and at least two:
    exporters need to know that a length is above 1, and follow the one symbol that it is then.
    """

    def __init__(self, recognizer: SpeakerRecognizer) -> None:
        super().__init__(recognizer)
        self.grid = recognizer.config.subsampling
        self.longest = LONGEST * self.grid if self.model.can_stream else recognizer.longest_window

    def forward(self, samples: Tensor) -> Tensor:
        mel = self.log_mel(samples)
        batch, frames, _ = mel.shape
        starts, lengths, width = self._windows(frames)
        frame = (starts.unsqueeze(1) + torch.arange(self.grid * width)).clamp(max=frames - 1)
        windows = mel[:, frame].flatten(0, 1)  # (b k, w, n_mels); what is beyond a window's length is padding
        embeddings = F.normalize(self.model.embed(windows, lengths.repeat(batch)), dim=-1)
        return self.finish((embeddings.unflatten(0, (batch, -1)) * lengths.unsqueeze(1)).sum(1))

    def _windows(self, frames: int) -> tuple[Tensor, Tensor, int]:
        """Starts and lengths (k,) of the windows of `utils.features.windows.cut_windows`, and the longest in `grid`s.

        Numbers of windows and frames are read out of tensors: for exporters they become symbols of their own, not long
        expressions of the number of samples about which nothing can be proven.
        """
        total = torch.scalar_tensor(frames, dtype=torch.int64)
        count = ((total + self.longest - 1) // self.longest).item()
        width = ((total.clamp(max=self.longest) + self.grid - 1) // self.grid).clamp(min=2).item()
        torch._check(count >= 1)
        torch._check(width >= 2)
        torch._check(width <= max(2, -(-self.longest // self.grid)))
        number = torch.arange(count)
        rest = frames - (count - 2) * self.longest  # of the last two windows, which share it
        ends = torch.where(number == count - 2, frames - rest // 2, (number + 1) * self.longest).clamp(max=frames)
        starts = torch.where(number == 0, 0, ends.roll(1))
        return starts, ends - starts, width


def trace(module: SamplesToEmbedding, recipe: MelRecipe) -> Graph:
    """The graph of the module for any batch of recordings that have two frames or more."""
    shapes = {INPUT: {0: Dim("batch", min=1), 1: Dim("count", min=recipe.samples(2))}}
    example = torch.zeros(2, recipe.samples(100))
    return Graph(follow(module, (example,), shapes), [INPUT], [OUTPUT])


def follow(module: Embedder, example: tuple[Tensor, ...], shapes: Any = None) -> ExportedProgram:
    """The program of a module for inputs of the example's shapes, but for what `shapes` leaves open."""
    with torch.no_grad(), _lstm_as_one_operator():
        program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # files on this machine
    return program


def to_onnx(graph: Graph, metadata: str) -> bytes:
    """An ONNX file with `metadata` among its properties."""
    names = {"input_names": graph.inputs, "output_names": graph.outputs}
    with _lstm_as_one_operator():
        program = torch.onnx.export(graph.program, (), **names, verbose=False)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # what it was made from, which is more than half of the file
    program.model.metadata_props[METADATA] = metadata
    return program.model_proto.SerializeToString()


def from_onnx(content: bytes) -> Run:
    """Runs a file by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def to_torch_export(graph: Graph, metadata: str) -> bytes:
    """A file for torch.export.load."""
    buffer = io.BytesIO()
    torch.export.save(graph.program, buffer, extra_files={f"{METADATA}.json": metadata})
    return buffer.getvalue()


def from_torch_export(content: bytes) -> Run:
    """Runs a file by torch.export.load."""
    return _of_torch(torch.export.load(io.BytesIO(content)).module())


def to_torchscript(graph: Graph, metadata: str) -> bytes:
    """A file for torch.jit.load."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(_scriptable(graph.program)), buffer, _extra_files={f"{METADATA}.json": metadata})
    return buffer.getvalue()


def from_torchscript(content: bytes) -> Run:
    """Runs a file by torch.jit.load."""
    return _of_torch(torch.jit.load(io.BytesIO(content)))


def _of_torch(module: Callable[..., Tensor | tuple[Tensor, ...]]) -> Run:
    def run(*inputs: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.no_grad():
            outputs = module(*map(torch.from_numpy, inputs))
        return [each.numpy() for each in ((outputs,) if isinstance(outputs, Tensor) else outputs)]

    return run


def _scriptable(program: ExportedProgram) -> fx.GraphModule:
    """A program as TorchScript reads it: operators without the names of overloads, and no assertions."""
    aten = torch.ops.aten
    module = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.target in (aten._assert_tensor_metadata.default, aten._assert_scalar.default):
            module.graph.erase_node(node)
        elif node.target is aten.item.default:
            node.target = int
        elif node.target is aten.sym_size.int:
            node.target = aten.size
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
        elif node.op == "output" and len(node.args[0]) == 1:
            node.args = node.args[0]  # a tensor, not a tuple of one
    module.graph.eliminate_dead_code()
    module.graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(module, module.graph)


@contextlib.contextmanager
def _lstm_as_one_operator() -> Iterator[None]:
    """Makes exporters keep an LSTM: to learn the shapes of its results torch unrolls it, for the example's length."""
    operator, key = torch.ops.aten.lstm.input, torch._C.DispatchKey.CompositeImplicitAutograd
    places = ((operator.py_kernels, key), (decomposition_table, operator))
    rules = [table[entry] for table, entry in places]
    for table, entry in places:
        table[entry] = _shapes_of_lstm
    try:
        yield
    finally:
        for (table, entry), rule in zip(places, rules, strict=True):
            table[entry] = rule


def _shapes_of_lstm(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
    """Empty results of torch.lstm for x (b, l, d): the outputs (b, l, h) or (b, l, 2 h), and two states."""
    directions, _, hidden = state[0].shape
    return x.new_empty(*x.shape[:2], directions * hidden), torch.empty_like(state[0]), torch.empty_like(state[1])


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Silences what torch says on stderr: of deprecations, of packages not needed, and of a failure the whole graph."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
