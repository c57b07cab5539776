"""The private names of torch that the project uses, with the reason for leaning on each.

They are the same in all supported versions; what differs is in ``torch_compat``. A test finds undeclared ones, and
``lightint doctor`` says which of them an unknown version of torch has lost.
"""

from __future__ import annotations

import importlib
from typing import Any

PRIVATE = {
    "torch._dynamo.convert_frame.compile_lock": "a later size of a region is compiled beside no other compilation",
    "torch._C._AutoDispatchBelowAutograd": "regions record no gradients, and our operators would refuse them in Python",
    "torch._C._cuda_clearCublasWorkspaces": "a recorded product has a workspace of its own, as Inductor's have",
    "torch._C.DisableTorchFunction": "tensors of the trace are handled without their own dispatch",
    "torch._C.DispatchKey": "with the next two: a trace in front of functionalisation",
    "torch._C.DispatchKeySet": "see DispatchKey",
    "torch._C._ExcludeDispatchKeyGuard": "see DispatchKey",
    "torch._C._dynamo.eval_frame.reset_code": "explain leaves no compiled entry behind",
    "torch._C._dynamo.guards.TensorGuards": "layouts of two thousand tensors are compared in every call",
    "torch._C._dispatch_has_kernel_for_dispatch_key": "which operators are composites of others",
    "torch._C._autograd._top_saved_tensors_default_hooks": "whether a kept trace was made under hooks on saved tensors",
    "torch._C._dispatch_tls_is_dispatch_key_excluded": "whether operations of a tensor's own class run in this thread",
    "torch._C._dispatch_keys": "what Dynamo's check of a tensor takes from it, for kept traces",
    "torch._C._exit_dual_level": "the adversary closes a level of forward mode that a failed assertion left open",
    "torch._C._functorch": "whether a transformation of functions is under way, and which",
    "torch._C._set_grad_enabled": "the node that Dynamo writes for a switch of gradients",
    "torch._dispatch.python.enable_python_dispatcher": "decompositions under fake tensors, as Inductor runs them",
    "torch.distributed._functional_collectives": "registers what fakes of the collectives in graphs compute",
    "torch._C._distributed_c10d._SymmetricMemory": "memory that ranks read from each other, and their barrier on GPUs",
    "torch._C._distributed_c10d._register_work": "what wait_tensor of an exchange by copies waits for",
    "torch._inductor.ir.TensorBox": "see _CollectiveKernel",
    "torch._inductor.ir._CollectiveKernel": "Inductor keeps the order of exchanges, as of collectives of torch's",
    "torch._inductor.lowering.add_layout_constraint": "see _CollectiveKernel",
    "torch._inductor.lowering.constrain_to_fx_strides": "see _CollectiveKernel",
    "torch.distributed.distributed_c10d._get_default_store": "where ranks say what came of a compilation",
    "torch.distributed.distributed_c10d._resolve_process_group": "the group that a collective in a graph names",
    "torch.fx.node._side_effectful_functions": "which operators users say have effects, asked of every node",
    "torch._dynamo.config": "documented, but reached through the private package",
    "torch._dynamo.convert_frame": "explain captures through Dynamo's own frame compiler, without a call",
    "torch._dynamo.exc.BackendCompilerFailed": "what of a failed trace is the backend's, and the caller's to see",
    "torch._functionalize_was_storage_changed": "which inputs are another tensor behind a graph",
    "torch._dynamo.exc.TorchRuntimeError": "what ended a trace may be the caller's own error",
    "torch._dynamo.exc.FailOnRecompileLimitHit": "a call in one graph that met its limit goes on in parts",
    "torch._dynamo.exc.UnspecializeRestartAnalysis": "a trace begins again with a memo that it cannot go without",
    "torch._dynamo.output_graph.OutputGraph": "where a graph ends, for what memos keep",
    "torch._dynamo.source.LocalSource": "with the next one: which tensors of a memo are a module's",
    "torch._guards.ChainedSource": "see LocalSource",
    "torch._dynamo.eval_frame.OptimizedModule": "what torch.compile gives back; reports are found by it",
    "torch._dynamo.eval_frame._debug_get_cache_entry_list": "which graphs a compiled function has",
    "torch._dynamo.eval_frame._stance": "whether the user wants compiled code to run eagerly",
    "torch._dynamo.eval_frame.innermost_fn": "the user's function under wrappers of torch.compile",
    "torch._dynamo.exc.TorchDynamoException": "the base class of everything that capture can raise",
    "torch._dynamo.graph_break": "a break that a test or a report asks for",
    "torch._dynamo.lookup_backend": "peers' backends by name, for benchmarks",
    "torch._dynamo.mark_dynamic": "documented, but reached through the private package",
    "torch._dynamo.maybe_mark_dynamic": "documented, but reached through the private package",
    "torch._dynamo.pgo": "explain leaves no memory of sizes behind",
    "torch._dynamo.reset": "documented, but reached through the private package",
    "torch._dynamo.source.AttrSource": "with the next one: a counter that is read from a tensor when a graph is called",
    "torch._dynamo.source.CallFunctionNoArgsSource": "see AttrSource",
    "torch._dynamo.source.DictGetItemSource": "with the next one: numbers in a dictionary of a module",
    "torch._dynamo.source.GlobalSource": "see DictGetItemSource",
    "torch._dynamo.variables.builder.is_int_specialization_case": "which numbers Dynamo takes for constants",
    "torch._dynamo.utils.get_debug_dir": "where TORCH_COMPILE_DEBUG=1 wants its dumps",
    "torch._dynamo.variables.base.VariableTracker": "a number that is known, as Dynamo writes it",
    "torch._dynamo.variables.builder.VariableBuilder": "a number of an input, handled and guarded as any other",
    "torch._dynamo.variables.base.ValueMutationNew": "an iterator that tracing made itself",
    "torch._dynamo.variables.builtin.BuiltinVariable": "where Dynamo meets range() of symbols",
    "torch._dynamo.variables.constant.ConstantVariable": "a number that is no symbol, as Dynamo writes it",
    "torch._dynamo.variables.lists.ListIteratorVariable": "see RangeVariable",
    "torch._dynamo.variables.lists.RangeVariable": "a range of symbols, as Dynamo writes it",
    "torch._dynamo.variables.lists.BaseListVariable": "sizes in a list, as Dynamo writes it",
    "torch._dynamo.variables.tensor.SymNodeVariable": "a symbolic size, as Dynamo writes it",
    "torch._dynamo.variables.functions.UserFunctionVariable": "where Dynamo meets functions of Python",
    "torch._dynamo.variables.torch.TorchInGraphFunctionVariable": "where Dynamo meets functions of torch",
    "torch._dynamo.variables.tensor.TensorVariable": "where Dynamo meets item(), tolist() and sizes that are tensors",
    "torch._dynamo.source.ConstantSource": "the source of a symbol that stands for a size of our own",
    "torch._dynamo.symbolic_convert.InstructionTranslatorBase": "where Dynamo branches on a value",
    "torch._dynamo.symbolic_convert.InstructionTranslator": "the user's line of a graph that is being captured",
    "torch._dynamo.utils.calculate_time_spent": "compile time as torch itself counts it",
    "torch._dynamo.utils.compilation_time_metrics": "the seconds of a trace, for benchmarks",
    "torch._dynamo.utils.counters": "graphs and recompiles as torch itself counts them",
    "torch._dynamo.utils.dynamo_timed": "our time in torch's own profile of a compilation",
    "torch._dynamo.utils.graph_break_reasons": "graph breaks with the user's lines, as torch itself keeps them",
    "torch._dynamo.utils.get_metrics_context": "explain is no compilation in torch's metrics",
    "torch._from_functional_tensor": "with the next ones: writes that functionalisation has seen",
    "torch._inductor.aoti_compile_and_package": "documented, but reached through the private package",
    "torch._inductor.package.package.load_package": "an AOTInductor package with several runners",
    "torch._functorch.config": "whether compiled code is kept on disk; settings that reach other processes",
    "torch._functionalize_has_data_mutation": "see _from_functional_tensor",
    "torch._functionalize_has_metadata_mutation": "see _from_functional_tensor",
    "torch._functionalize_mutation_counter": "which operation of a trace writes to memory that copied views show",
    "torch._sync": "see _from_functional_tensor",
    "torch._guards.CompileContext": "explain has a compilation of its own",
    "torch._guards.compile_context": "explain has a compilation of its own",
    "torch._guards.Source": "the source of a symbol that stands for a size of our own",
    "torch._guards.TracingContext": "which tensors of a Dynamo graph are parameters, and the mode of fake ones",
    "torch._higher_order_ops.while_loop": "one of the control-flow operators that have a public name only in part",
    "torch._inductor.async_compile.AsyncCompile": "C++ of all regions compiles in a pool and is waited for once",
    "torch._inductor.codecache.CodeCacheFuture": "see AsyncCompile",
    "torch._inductor.codecache.LambdaFuture": "see AsyncCompile",
    "torch._inductor.compile_fx.compile_fx": "the stock backend: what a graph that is left alone goes to",
    "torch._inductor.config": "settings are part of the key of kept programs, and set for regions",
    "torch._inductor.cpp_builder.get_cpp_compiler": "doctor says which compiler Inductor would take",
    "torch._inductor.decomposition.decompositions": "with the lowerings: a rule of the user's is in no other process",
    "torch._inductor.exc.InductorError": "what it cannot fuse is compiled once more with nothing fused",
    "torch._inductor.ir.ExternKernel": "operands of branches keep their strides in a package",
    "torch._inductor.custom_graph_pass": "a pass of ours inside of Inductor, behind those of its own that drop copies",
    "torch._inductor.list_mode_options": "documented, but reached through the private package",
    "torch._inductor.lowering.clone": "a copy that is evaluated at its place, see overwritten_reads",
    "torch._inductor.lowering.fallback_handler": "a copy that is evaluated at its place, see overwritten_reads",
    "torch._inductor.lowering.lowerings": "see decompositions",
    "torch._inductor.lowering.register_lowering": "see ExternKernel",
    "torch._inductor.pattern_matcher.PatternMatcherPass": "see decompositions: a pattern of the user's",
    "torch._inductor.runtime.cache_dir_utils.cache_dir": "kept programs and rates lie beside Inductor's",
    "torch._inductor.standalone_compile": "one region compiled by itself, and its artifact",
    "torch._inductor.utils.fresh_cache": "cold compile times, for benchmarks",
    "torch._library.triton.is_wrap_triton_enabled": "whether a launch is being traced",
    "torch._logging._internal.trace_structured": "our stages in torch's own trace log",
    "torch._ops.HigherOrderOperator": "what a node may call, for types and checks",
    "torch._ops.OpOverload": "what a node may call, for types and checks",
    "torch._ops.OpOverloadPacket": "an operator that a kept trace names",
    "torch._ops.OperatorBase": "what a node may call, for types and checks",
    "torch._ops._higher_order_ops": "operators that hold graphs treat our mode as the one that it stands for",
    "torch._ops._len_torch_dispatch_stack_pre_dispatch": "whether a mode watches operators",
    "torch._prims_common.is_non_overlapping_and_dense_or_false": "which operands of branches have strides to keep",
    "torch._refs.tensor": "what Dynamo makes of a tensor of symbolic sizes",
    "torch._subclasses.fake_tensor": "fake tensors and their mode, which a trace runs under",
    "torch._subclasses.functional_tensor": "functional tensors and their mode, which a trace meets",
    "torch.amp.autocast_mode._enter_autocast": "the node that Dynamo writes for an autocast region",
    "torch.amp.autocast_mode._exit_autocast": "see _enter_autocast",
    "torch.autograd.grad_mode._unsafe_preserve_version_counter": "writes that must not look like the user's",
    "torch.fx._lazy_graph_module": "graph modules that are recompiled when they are called first",
    "torch.fx.experimental.proxy_tensor._ProxyTensor": "the node of a value inside a trace",
    "torch.library._impls": "see decompositions: a kernel that the user gave an operator of torch's",
    "torch.utils._python_dispatch._disable_current_modes": "constants are computed while a trace runs",
    "torch.utils._pytree": "nested arguments and results, flattened as torch itself flattens them",
    "torch.utils._sympy.functions": "the divisions and maxima in torch's symbolic sizes",
}
"""Private names of torch by their full path, and why each is used: there is no public one that does the same."""


def missing() -> list[str]:
    """The names of :data:`PRIVATE` that this torch does not have."""
    return [name for name in PRIVATE if not _exists(name)]


def _exists(name: str) -> bool:
    """Whether a dotted name can be imported or read from what can."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
