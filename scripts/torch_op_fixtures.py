#!/usr/bin/env python3
"""Writes tests/fixtures/torch_ops/*.json: PyTorch's float64 numbers for every op of the registry with every option.

    python scripts/torch_op_fixtures.py          # needs torch; no GPU

A case holds inputs, outputs, random cotangents of the outputs ("seed"), the gradients that they give, a random direction for
every differentiable input ("dir"), and the gradient of <dir, gradient> with respect to inputs and cotangents ("second").
Numbers of ordinary cases have at most 8 significant bits, so that f64, f32, bf16 and f16 hold the same inputs, and one row of
float64 results is the reference for all four. Ops without a twin in PyTorch are written as a composition of its ops.
"""

import functools
import itertools
import json
import math
import pathlib
import string
import zlib

import torch
import torch.nn.functional as F

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "torch_ops"
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
inf, nan = math.inf, math.nan
FAMILIES = {}
rng = torch.Generator()


# --- numbers ------------------------------------------------------------------------------------------------------------

def q(*shape, scale=1.0):
    """Normal numbers of at most 8 significant bits, none of them 0."""
    x = (torch.randn(shape, generator=rng) * scale * 32).round().clamp(-127, 127) / 32
    return torch.where(x == 0, torch.full_like(x, 1 / 32), x)


def pos(*shape, low=0.25):
    return q(*shape).abs() + low


def unit(*shape):
    """In (-1, 1)."""
    return q(*shape).clamp(-0.9375, 0.9375)


def distinct(*shape):
    n = math.prod(shape)
    return ((torch.randperm(n, generator=rng).double() - n / 2) * 0.125 + 0.0625).reshape(shape)


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def ints(values, dtype="i64"):
    x = torch.tensor(values, dtype=torch.int64)
    x.kind = dtype
    return x


def mask(*shape):
    x = (torch.rand(shape, generator=rng) < 0.6).long()
    x.kind = "u8"
    return x


# --- writing ------------------------------------------------------------------------------------------------------------

def text(x):
    """Every float64 exactly, as the shortest decimal."""
    flat = x.detach().reshape(-1).tolist()
    if not x.dtype.is_floating_point:
        return " ".join(str(int(v)) for v in flat)
    return " ".join(str(int(v)) if v == int(v) and abs(v) < 1e6 and not (v == 0 and math.copysign(1, v) < 0) else repr(v)
                    for v in [float(v) for v in flat]) if all(map(math.isfinite, flat)) else " ".join(repr(float(v)) for v in flat)


def pack(x):
    d = {"shape": list(x.shape), "data": text(x)}
    if not x.dtype.is_floating_point:
        d["dtype"] = getattr(x, "kind", "u8" if x.dtype in (torch.bool, torch.uint8) else "i64")
    return d


def case(family, op, name, f, inputs, options=None, order=2, diff=None, dtypes=None, note=None):
    """Computes one case. `diff`: inputs with a derivative (all floats unless said); order 0: values only."""
    # Each case draws from a stream of its own: a new one changes no other.
    rng.manual_seed(zlib.crc32(f"{op}/{name}".encode()))
    inputs = inputs() if callable(inputs) else inputs
    kinds = [getattr(x, "kind", None) for x in inputs]
    floats = [i for i, x in enumerate(inputs) if x.dtype.is_floating_point]
    diff = ([] if order == 0 else floats) if diff is None else diff
    xs = [x.clone().requires_grad_(i in diff) for i, x in enumerate(inputs)]
    ys = f(*xs)
    ys = list(ys) if isinstance(ys, (tuple, list)) else [ys]
    # JSON has no infinities: those are words.
    options = {k: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in (options or {}).items()}
    c = {"op": op, "case": name, "options": options, "in": [], "order": order}
    for x, k in zip(inputs, kinds):
        if k:
            x.kind = k
        c["in"].append(pack(x))
    c["out"] = [pack(y) for y in ys]
    if dtypes:
        c["dtypes"] = dtypes
    if note:
        c["note"] = note
    live = [k for k, y in enumerate(ys) if y.requires_grad]
    if order and diff and live:
        seeds = [q(*ys[k].shape).requires_grad_(True) for k in live]
        some = lambda g, x: torch.zeros_like(x) if g is None or g._is_zerotensor() else g
        gs = torch.autograd.grad([ys[k] for k in live], [xs[i] for i in diff], seeds, create_graph=order > 1, allow_unused=True)
        c["diff"] = diff
        c["seed"] = [pack(seeds[live.index(k)]) if k in live else None for k in range(len(ys))]
        c["grad"] = [pack(some(g, xs[i])) for g, i in zip(gs, diff)]
        if order > 1:
            dirs = [q(*xs[i].shape) for i in diff]
            c["dir"] = [pack(d) for d in dirs]
            s = sum((g * d).sum() for g, d in zip(gs, dirs) if g is not None and g.requires_grad)
            wrt = [xs[i] for i in diff] + seeds
            hs = torch.autograd.grad(s, wrt, allow_unused=True) if torch.is_tensor(s) else [None] * len(wrt)
            hs = [some(h, w) for h, w in zip(hs, wrt)]
            c["second"] = [pack(h) for h in hs[:len(diff)]]
            rest = iter(hs[len(diff):])
            c["second_seed"] = [pack(next(rest)) if k in live else None for k in range(len(ys))]
    FAMILIES.setdefault(family, []).append(c)


# --- elementwise --------------------------------------------------------------------------------------------------------

def elementwise():
    sqrt2 = math.sqrt(2)
    normal = lambda: q(3, 4)
    unary = {
        # name: (function, ordinary inputs, options, whether second derivatives are smooth there)
        "abs": (torch.abs, normal), "ceil": (torch.ceil, normal), "cos": (torch.cos, normal), "erf": (torch.erf, normal),
        "exp": (torch.exp, normal), "expm1": (torch.expm1, normal), "floor": (torch.floor, normal), "gelu": (F.gelu, normal),
        "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), normal), "log": (torch.log, lambda: pos(3, 4)),
        "log1p": (torch.log1p, lambda: pos(3, 4) - 0.75), "neg": (torch.neg, normal),
        "normal_cdf": (lambda x: 0.5 * torch.special.erfc(-x / sqrt2), normal), "recip": (torch.reciprocal, normal),
        "relu": (F.relu, normal), "relu_squared": (lambda x: F.relu(x).square(), normal), "round": (torch.round, normal),
        "rsqrt": (torch.rsqrt, lambda: pos(3, 4)), "sigmoid": (torch.sigmoid, normal), "sign": (torch.sign, normal),
        "silu": (F.silu, normal), "sin": (torch.sin, normal), "softplus": (lambda x: F.softplus(x), normal),
        "sqrt": (torch.sqrt, lambda: pos(3, 4)), "square": (torch.square, normal), "tanh": (torch.tanh, normal),
    }
    special = t(nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5)
    extreme = t(2.0**100, -(2.0**100), 2.0**-100, -(2.0**-100), 40.0, -40.0, 96.0, -96.0)
    # Far from 0 PyTorch's derivatives cancel (1 - tanh^2, result + 1), and its softplus is linear from 20 on: formulas that do not.
    e = lambda x: torch.exp(-2 * x.abs())
    logistic = lambda x: torch.where(x > 0, 1 / (1 + torch.exp(-x.abs())), torch.exp(-x.abs()) / (1 + torch.exp(-x.abs())))
    accurate = {
        "expm1": lambda x: torch.where(x < -1, torch.exp(x.clamp(max=0.0)) - 1, torch.expm1(x.clamp(min=-1.0))),
        "gelu": lambda x: x * 0.5 * torch.special.erfc(-x / sqrt2),
        "gelu_tanh": lambda x: x * logistic(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
        "normal_cdf": unary["normal_cdf"][0], "sigmoid": logistic, "silu": lambda x: x * logistic(x),
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "tanh": lambda x: torch.where(x.abs() < 1, torch.tanh(x), torch.sign(x) * (1 - e(x)) / (1 + e(x))),
    }
    for name, (f, make) in unary.items():
        case("elementwise", name, "plain", f, lambda: [make()])
        case("elementwise", name, "special", f, [special], order=1)
        case("elementwise", name, "extreme", accurate.get(name, f) if name in ("expm1", "sigmoid", "tanh") else f, [extreme], order=1, dtypes=["f64", "f32", "bf16"])
        case("elementwise", name, "empty", f, [torch.zeros(0, 3)], order=1)
        case("elementwise", name, "scalar", f, lambda: [make()[0, 0]])
        case("elementwise", name, "rank3", f, lambda: [make().reshape(2, 2, 3)], order=1)
    far = t(30.0, -30.0, 9.0, -9.0, 5.0, -5.0, 20.5, -20.5)
    for name in ["erf", *accurate]:
        case("elementwise", name, "tails", accurate.get(name, unary[name][0]), [far], order=1)

    def optioned(name, variants, f, make=normal, key="value", smooth=True):
        for i, v in enumerate(variants):
            o = v if isinstance(v, dict) else {key: v}
            g = lambda x, v=v: f(x, v)
            case("elementwise", name, f"plain{i}", g, lambda: [make()], o, order=2 if smooth else 1)
            case("elementwise", name, f"special{i}", g, [special], o, order=1)
            case("elementwise", name, f"empty{i}", g, [torch.zeros(2, 0)], o, order=1)
    whole = lambda: q(3, 4, scale=100.0)
    for d in [0, 1, 2, 3, -1, -2]:
        f = lambda x, d=d: torch.round(x, decimals=d)
        case("elementwise", "round_decimals", f"plain{d}", f, lambda: [whole() if d < 0 else normal()], {"decimals": d})
        case("elementwise", "round_decimals", f"special{d}", f, [special], {"decimals": d}, order=1)
    case("elementwise", "round_decimals", "ties", lambda x: torch.round(x, decimals=-1), [t(5.0, 15.0, 25.0, -5.0, -15.0, 14.0, 16.0)], {"decimals": -1}, order=1)
    optioned("elu", [1.0, 0.5, 2.0], lambda x, a: F.elu(x, a), key="alpha")
    optioned("leaky_relu", [0.0, 0.25, 0.5], lambda x, s: F.leaky_relu(x, s), key="slope")
    optioned("powf", [0.0, 0.5, 2.0, 3.0, -1.5, 2.5], torch.pow, lambda: pos(3, 4), key="p")
    optioned("powi", [0, 1, 2, 3, 7, -1, -2], torch.pow, normal, key="n")
    clamp = lambda x, v: torch.clamp(x, v.get("min"), v.get("max"))
    optioned("clamp", [{"min": -0.5, "max": 0.75}, {"min": 0.0, "max": None}, {"min": None, "max": 0.25}, {"min": -2.0**100, "max": 2.0**100}], clamp)
    edge = t(-1.0, -0.5, 0.0, 0.5, 1.0, nan, inf, -inf)
    for i, v in enumerate([{"min": -0.5, "max": 0.5}, {"min": 0.0, "max": None}, {"min": None, "max": 0.0}, {"min": 0.5, "max": 0.5}]):
        case("elementwise", "clamp", f"bounds{i}", lambda x, v=v: clamp(x, v), [edge], v, order=1, note="slope 0 at scalar bounds, and at NaN")
    scalars = [0.0, 0.75, -2.0]
    optioned("add_scalar", scalars, lambda x, c: x + c)
    optioned("sub_scalar", scalars, lambda x, c: x - c)
    optioned("rsub_scalar", scalars, lambda x, c: c - x)
    optioned("mul_scalar", scalars, lambda x, c: x * c)
    optioned("div_scalar", scalars[1:], lambda x, c: x / c)
    optioned("rdiv_scalar", scalars, lambda x, c: c / x)


# --- two operands -------------------------------------------------------------------------------------------------------

def binary():
    shapes = {
        "same": ((3, 4), (3, 4)), "row": ((3, 4), (4,)), "outer": ((3, 1), (1, 4)), "scalar": ((), (2, 3)),
        "both": ((2, 1, 3), (4, 1)), "empty": ((0, 3), (3,)), "scalars": ((), ()),
    }
    fs = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg_mul": lambda a, b: -(a * b), "maximum": torch.maximum,
          "minimum": torch.minimum, "pow": torch.pow}
    for op, f in fs.items():
        for name, (a, b) in shapes.items():
            if op == "neg_mul" and a != b:
                continue
            left = pos if op == "pow" else q
            case("binary", op, name, f, lambda: [left(*a), q(*b)])
        v = [0.0, 1.0, -1.0, inf, -inf, nan, 2.0]
        grid = [(x, y) for x in v for y in v]
        a, b = t(*[g[0] for g in grid]), t(*[g[1] for g in grid])
        case("binary", op, "special", f, [a, b], order=1)
        case("binary", op, "extreme", f, [t(2.0**100, 2.0**-100, 1.5, -2.0**100), t(2.0**100, 2.0**-100, 2.0**-100, 3.0)], order=1, dtypes=["f64", "f32", "bf16"])
    case("binary", "maximum", "ties", torch.maximum, [t(1.0, 2.0, -0.0, 0.0, 3.0), t(1.0, 1.0, 0.0, -0.0, 3.0)], order=1, note="halves")
    case("binary", "minimum", "ties", torch.minimum, [t(1.0, 2.0, -0.0, 0.0, 3.0), t(1.0, 1.0, 0.0, -0.0, 3.0)], order=1, note="halves")
    case("binary", "pow", "whole", torch.pow, [t(-2.0, -1.5, 2.0, 0.5, -3.0), t(3.0, 2.0, -2.0, 4.0, 0.0)], order=1)

    relations = {"Equal": torch.eq, "NotEqual": torch.ne, "Less": torch.lt, "AtMost": torch.le, "Greater": torch.gt, "AtLeast": torch.ge}
    v = [0.0, 1.0, -1.0, inf, -inf, nan]
    grid = [(x, y) for x in v for y in v]
    a, b = t(*[g[0] for g in grid]), t(*[g[1] for g in grid])
    for r, f in relations.items():
        case("binary", "compare", f"{r}_special", f, [a, b], {"relation": r}, order=0)
        case("binary", "compare", f"{r}_broadcast", f, lambda: [q(3, 1), q(1, 4)], {"relation": r}, order=0)
        for d in ["i64", "u32", "u8"]:
            case("binary", "compare", f"{r}_{d}", f, [ints([[0, 1, 2], [3, 4, 5]], d), ints([1, 1, 5], d)], {"relation": r}, order=0)
        for i, c in enumerate([0.0, 1.0, nan]):
            case("binary", "compare_scalar", f"{r}_{i}", lambda x, c=c: f(x, c), [t(*v)], {"relation": r, "value": c}, order=0)
        case("binary", "compare_scalar", f"{r}_i64", lambda x: f(x, 1), [ints([0, 1, 2])], {"relation": r, "value": 1.0}, order=0)
    m, n = ints([0, 0, 1, 1, 7, 0], "u8"), ints([0, 1, 0, 1, 0, 9], "u8")
    case("binary", "logical", "and", torch.logical_and, [m, n], {"and": True}, order=0)
    case("binary", "logical", "or", torch.logical_or, [m, n], {"and": False}, order=0)
    case("binary", "logical", "broadcast", torch.logical_or, [ints([[0], [1]], "u8"), ints([0, 1, 0], "u8")], {"and": False}, order=0)
    case("binary", "logical_not", "plain", torch.logical_not, [n], order=0)


# --- reductions ---------------------------------------------------------------------------------------------------------

AXES = {"all": None, "last": [-1], "first": [0], "middle": [1], "outer": [0, 2], "swapped": [2, 0], "pair": [-1, -2], "none": []}


def reductions():
    def over(f):
        """`f(x, dims, keep)` also for no axes at all, which in PyTorch means all of them."""
        def g(x, axes, keep):
            if axes is None:
                axes = list(range(x.dim()))
            if axes == []:
                return f(x.unsqueeze(-1), [-1], keep=False)
            return f(x, axes, keep=keep)
        return g
    def prod(x, axes, keep):
        for a in sorted([a % x.dim() for a in axes], reverse=True):
            x = x.prod(a, keepdim=keep)
        return x
    norm = lambda x, a, keep: torch.linalg.vector_norm(x, dim=a, keepdim=keep)
    fs = {
        "sum": lambda x, a, keep: x.sum(a, keepdim=keep), "mean": lambda x, a, keep: x.mean(a, keepdim=keep),
        "logsumexp": lambda x, a, keep: x.logsumexp(a, keepdim=keep), "max": lambda x, a, keep: x.amax(a, keepdim=keep),
        "min": lambda x, a, keep: x.amin(a, keepdim=keep), "norm": norm, "prod": prod,
    }
    many = dict(fs)
    for c in [0, 1, 2, 0.5, 1.5]:
        many[f"var{c}"] = lambda x, a, keep, c=c: x.var(a, correction=c, keepdim=keep)
        many[f"std{c}"] = lambda x, a, keep, c=c: x.std(a, correction=c, keepdim=keep)
    for key, f in many.items():
        op, o = (key[:3], {"correction": float(key[3:]) if "." in key else int(key[3:])}) if key[:3] in ("var", "std") else (key, {})
        tag = str(o.get("correction", ""))
        for name, axes in AXES.items():
            if tag and name == "none":
                continue
            for keep in [False, True]:
                if tag == "2" and keep:
                    continue
                shape = (3, 4, 3) if tag == "2" else (2, 3, 4) if not tag else (3, 3, 4)
                case("reductions", op, f"{name}{tag}{'_keep' if keep else ''}", lambda x, a=axes, k=keep: over(f)(x, a, k),
                     lambda: [distinct(*shape)], {**o, "axes": axes, "keep": keep}, order=2 if name in ("all", "last", "outer") and not keep else 1)
        case("reductions", op, f"scalar{tag}", lambda x: f(x.reshape(1), [0], False), lambda: [q()], {**o, "axes": None, "keep": False},
             order=0 if tag else 1) if not tag else None
        last = {**o, "axes": [-1], "keep": False}
        g = lambda x: f(x, [-1], False)
        rows = torch.tensor([[nan, 0.0, 3.0], [inf, 0.0, 1.0], [-inf, 0.0, 1.0], [inf, -inf, 2.0], [-inf, -inf, -inf], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 3.0, 5.0], [0.0, 0.0, 2.0]])
        case("reductions", op, f"special{tag}", g, [rows], last, order=1)
        big = torch.tensor([[2.0**100, 1.0, -2.0**90], [2.0**-100, 2.0**-99, -2.0**-98], [2.0**100, 2.0**101, 2.0**102]])
        case("reductions", op, f"extreme{tag}", g, [big], last, order=1, dtypes=["f64", "f32"])
        case("reductions", op, f"no_groups{tag}", g, [torch.zeros(0, 3)], last, order=1)
        if op not in ("max", "min"):
            case("reductions", op, f"empty_groups{tag}", g, [torch.zeros(2, 0)], last, order=1)
        case("reductions", op, f"long{tag}", g, lambda: [q(2, 131)], last, order=1)
    ties = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -1.0, 5.0, 5.0]])
    for op in ["max", "min"]:
        case("reductions", op, "ties", lambda x: fs[op](x, [-1], False), [ties], {"axes": [-1], "keep": False}, order=1, note="ties share")
    for op, values in {"one": [[2.0, 0.0, 3.0]], "two": [[0.0, 0.0, 3.0]], "three": [[0.0, 0.0, 0.0]]}.items():
        case("reductions", "prod", f"{op}_zeros", lambda x: prod(x, [-1], False), [torch.tensor(values)], {"axes": [-1], "keep": False}, order=2)
    for c, f in [("std", torch.std), ("var", torch.var)]:
        case("reductions", c, "tiny", lambda x: f(x, [-1], correction=1), [torch.tensor([[2.0**-100, 3 * 2.0**-100]])], {"axes": [-1], "keep": False, "correction": 1}, order=1, dtypes=["f64", "f32"])
        case("reductions", c, "huge", lambda x: f(x, [-1], correction=1), [torch.tensor([[2.0**100, 3 * 2.0**100]])], {"axes": [-1], "keep": False, "correction": 1}, order=1, dtypes=["f64", "f32"])

    # Sums of rows and of columns that lie apart in every type.
    matrix = torch.tensor([[0.5, -1.0, 3.0], [-2.0, 5.0, 0.25]])
    pair = torch.stack([matrix, torch.tensor([[8.0, 0.75, -0.5], [1.0, 2.0, -16.0]])])
    for kind, order in {"Frobenius": "fro", "One": 1, "Infinity": inf, "MinusOne": -1, "MinusInfinity": -inf}.items():
        f = lambda x, axes, keep=False: torch.linalg.matrix_norm(x, order, dim=axes, keepdim=keep)
        o = {"kind": kind, "axes": None, "keep": False}
        case("reductions", "matrix_norm", f"{kind}_all", lambda x: f(x, (0, 1)), [matrix], o)
        case("reductions", "matrix_norm", f"{kind}_swapped", lambda x: f(x, (1, 0)), [matrix], {**o, "axes": [1, 0]})
        case("reductions", "matrix_norm", f"{kind}_batch", lambda x: f(x, (-2, -1)), [pair], {**o, "axes": [-2, -1]})
        case("reductions", "matrix_norm", f"{kind}_keep", lambda x: f(x, (2, 0), True), [pair], {**o, "axes": [2, 0], "keep": True})
        case("reductions", "matrix_norm", f"{kind}_zero", lambda x: f(x, (0, 1)), [torch.zeros(2, 2)], o, order=1)
        case("reductions", "matrix_norm", f"{kind}_no_matrices", lambda x: f(x, (1, 2)), [torch.zeros(0, 2, 2)], {**o, "axes": [1, 2]}, order=1)

    m = torch.tensor([[[0, 2], [0, 0]], [[1, 1], [9, 3]], [[0, 1], [1, 1]]])
    m.kind = "u8"
    for all_ in [False, True]:
        for name, axes in AXES.items():
            def g(x, a=axes):
                x, a = x.bool(), list(range(3)) if a is None else a
                if a == []:
                    return x
                return (torch.all if all_ else torch.any)(x, dim=a)
            case("reductions", "any_all", f"{'all' if all_ else 'any'}_{name}", g, [m], {"all": all_, "axes": axes, "keep": False}, order=0)
        case("reductions", "any_all", f"{'all' if all_ else 'any'}_keep", lambda x: (torch.all if all_ else torch.any)(x.bool(), 1, keepdim=True), [m], {"all": all_, "axes": [1], "keep": True}, order=0)
        e = torch.zeros(2, 0, dtype=torch.int64)
        e.kind = "u8"
        case("reductions", "any_all", f"{'all' if all_ else 'any'}_empty", lambda x: (torch.all if all_ else torch.any)(x.bool(), 1), [e], {"all": all_, "axes": [1], "keep": False}, order=0)
    rows = torch.tensor([[1.0, 3.0, 3.0, 0.0], [nan, 9.0, nan, 1.0], [-inf, inf, -inf, inf], [2.0, 2.0, 2.0, 2.0]])
    for largest in [True, False]:
        a, m = (torch.argmax, torch.max) if largest else (torch.argmin, torch.min)
        for axis in [0, 1, -1, -3]:
            for keep in [False, True]:
                o = {"largest": largest, "axis": axis, "keep": keep}
                tag = f"{'max' if largest else 'min'}{axis}{'_keep' if keep else ''}"
                case("reductions", "argmax", tag, lambda x: a(x, axis, keepdim=keep), lambda: [distinct(2, 3, 4)], o, order=0)
                if keep is False:
                    case("reductions", "max_with_index", tag, lambda x: tuple(m(x, axis, keepdim=keep)), lambda: [distinct(2, 3, 4)], o)
        o = {"largest": largest, "axis": 1, "keep": False}
        tag = "max" if largest else "min"
        case("reductions", "argmax", f"{tag}_special", lambda x: a(x, 1), [rows], o, order=0)
        case("reductions", "max_with_index", f"{tag}_special", lambda x: tuple(m(x, 1)), [rows], o, order=1)
    for axis in [0, 1, -1]:
        case("reductions", "cumsum", f"axis{axis}", lambda x: x.cumsum(axis), lambda: [q(2, 3, 4)], {"axis": axis})
    case("reductions", "cumsum", "special", lambda x: x.cumsum(-1), [torch.tensor([[1.0, nan, 2.0], [inf, 1.0, -inf], [1.0, 2.0, 3.0]])], {"axis": -1}, order=1)
    case("reductions", "cumsum", "empty", lambda x: x.cumsum(-1), [torch.zeros(3, 0)], {"axis": -1}, order=1)
    case("reductions", "cumsum", "long", lambda x: x.cumsum(-1), lambda: [q(2, 70)], {"axis": -1}, order=1)
    for down in [False, True]:
        for axis in [0, 1, -1]:
            o = {"axis": axis, "descending": down}
            case("reductions", "sort", f"{'down' if down else 'up'}{axis}", lambda x: tuple(torch.sort(x, dim=axis, descending=down, stable=True)), lambda: [distinct(3, 2, 4)], o)
            for k in [0, 1, 2]:
                case("reductions", "topk", f"{'down' if down else 'up'}{axis}_{k}", lambda x: tuple(torch.topk(x, k, dim=axis, largest=down)), lambda: [distinct(3, 2, 4)], {**o, "k": k}, order=2 if k else 1)
        case("reductions", "sort", f"{'down' if down else 'up'}_special", lambda x: tuple(torch.sort(x, dim=-1, descending=down, stable=True)), [rows], {"axis": -1, "descending": down}, order=1)
        case("reductions", "topk", f"{'down' if down else 'up'}_special", lambda x: tuple(y[..., :1] for y in torch.sort(x, dim=-1, descending=down, stable=True)), [rows], {"axis": -1, "descending": down, "k": 1}, order=1)
        case("reductions", "sort", f"{'down' if down else 'up'}_empty", lambda x: tuple(torch.sort(x, dim=-1, descending=down, stable=True)), [torch.zeros(2, 0)], {"axis": -1, "descending": down}, order=1)
    for op, f in {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.items():
        for axis in [0, 1, -1, -3]:
            case("reductions", op, f"axis{axis}", lambda x: f(x, axis), lambda: [q(2, 3, 4)], {"axis": axis})
        rows = torch.tensor([[0.0, -inf, 1.0], [1.0, 1.0, 1.0], [nan, 0.0, 1.0], [60000.0, 0.0, -60000.0], [0.0, inf, 1.0], [-inf, -inf, -inf]])
        case("reductions", op, "special", lambda x: f(x, -1), [rows], {"axis": -1}, order=1)
        case("reductions", op, "huge", lambda x: f(x, -1), [torch.tensor([[2.0**100, 2.0**99, 0.0], [2.0**-100, 0.0, -2.0**100]])], {"axis": -1}, order=1, dtypes=["f64", "f32", "bf16"])
        case("reductions", op, "empty", lambda x: f(x, -1), [torch.zeros(2, 0)], {"axis": -1}, order=1)
        case("reductions", op, "long", lambda x: f(x, -1), lambda: [q(2, 67, scale=2.0)], {"axis": -1}, order=1)


# --- shapes -------------------------------------------------------------------------------------------------------------

def shapes():
    fam = "shapes"
    x3 = lambda: [q(2, 3, 4)]
    for name, shapes_, axis in [("rows", [(2, 3), (1, 3), (3, 3)], 0), ("columns", [(2, 1), (2, 3)], 1), ("last", [(2, 2, 1), (2, 2, 2)], -1), ("middle", [(2, 1, 3), (2, 2, 3)], -2), ("one", [(2, 3)], 0), ("empty_part", [(2, 0), (2, 3)], 1)]:
        case(fam, "concat", name, lambda *x: torch.cat(x, axis), lambda: [q(*s) for s in shapes_], {"axis": axis})
    for axis in [0, 1, 2, -1, -3]:
        case(fam, "stack", f"axis{axis}", lambda *x: torch.stack(x, axis), lambda: [q(2, 3), q(2, 3), q(2, 3)], {"axis": axis})
    case(fam, "stack", "scalars", lambda *x: torch.stack(x, 0), lambda: [q(), q()], {"axis": 0})
    for name, axes in {"first": [0], "last": [-1], "two": [0, -1], "all": None, "none": []}.items():
        case(fam, "flip", name, lambda x: torch.flip(x, list(range(3)) if axes is None else axes), x3, {"axes": axes})
    for name, shifts, axes in [("one", [1], [0]), ("back", [-1], [1]), ("two", [2, -1], [2, 0]), ("far", [9, -7], [-1, -2]), ("none", [], [])]:
        case(fam, "roll", name, lambda x: torch.roll(x, shifts, axes) if axes else x * 1, x3, {"shifts": shifts, "axes": axes})
    case(fam, "roll", "empty", lambda x: torch.roll(x, [1], [0]), [torch.zeros(0, 2)], {"shifts": [1], "axes": [0]}, order=1)
    for name, by, value in [("last", [(0, 0), (0, 0), (1, 2)], 0.0), ("all", [(1, 0), (0, 1), (2, 1)], 0.5), ("none", [(0, 0)] * 3, 1.0), ("inf", [(0, 0), (1, 1), (0, 0)], -inf), ("nan", [(1, 1), (0, 0), (0, 0)], nan)]:
        flat = [n for pair in reversed(by) for n in pair]
        case(fam, "pad", name, lambda x: F.pad(x, flat, value=value), x3, {"by": [n for pair in by for n in pair], "value": value})
    case(fam, "pad", "empty", lambda x: F.pad(x, (1, 1), value=2.0), [torch.zeros(2, 0)], {"by": [0, 0, 1, 1], "value": 2.0}, order=1)
    for mode in ["reflect", "replicate", "circular"]:
        # PyTorch continues the last axes of images alone.
        case(fam, "pad_with", f"{mode}_line", lambda x: F.pad(x, (2, 1), mode=mode), x3, {"by": [0, 0, 0, 0, 2, 1], "mode": mode})
        case(fam, "pad_with", f"{mode}_plane", lambda x: F.pad(x, (1, 0, 0, 2), mode=mode), lambda: [q(1, 2, 3, 4)], {"by": [0, 0, 0, 0, 0, 2, 1, 0], "mode": mode})
    for r in [1, 2]:
        case(fam, "pixel_shuffle", f"by{r}", lambda x: F.pixel_shuffle(x, r), lambda: [q(2, 4, 2, 3)], {"factor": r})
        case(fam, "pixel_unshuffle", f"by{r}", lambda x: F.pixel_unshuffle(x, r), lambda: [q(2, 1, 2, 4)], {"factor": r})
    for name, order in [("cycle", [2, 0, 1]), ("negative", [-1, -3, -2]), ("same", [0, 1, 2]), ("swap", [1, 0, 2])]:
        case(fam, "permute", name, lambda x: x.permute(order), x3, {"order": order})
    case(fam, "permute", "scalar", lambda x: x.permute([]), lambda: [q()], {"order": []})
    for a, b in [(0, 1), (-1, -3), (1, 1), (0, -1)]:
        case(fam, "transpose", f"{a}_{b}", lambda x: x.transpose(a, b), x3, {"a": a, "b": b})
    def cut(x, axis, start, end, step):
        index = [slice(None)] * x.dim()
        index[axis] = slice(start, end, step)
        return x[tuple(index)]
    for name, axis, start, end, step in [("all", 0, None, None, 1), ("from", 1, 2, None, 1), ("to", 1, None, 3, 1), ("both", 0, 1, 4, 1), ("negative", 1, -4, -1, 1), ("last", -1, -2, None, 1), ("step", 1, None, None, 2), ("step_from", 1, 1, None, 3), ("step_over", 0, 0, 4, 7), ("empty", 0, 2, 2, 1), ("whole_step", -2, 0, -1, 2)]:
        case(fam, "slice", name, lambda x: cut(x, axis, start, end, step), lambda: [q(4, 6)], {"axis": axis, "start": start, "end": end, "step": step})
    for axis, index in [(0, 0), (1, -1), (-1, 2), (2, 3), (0, -2)]:
        case(fam, "select", f"{axis}_{index}", lambda x: x.select(axis, index), x3, {"axis": axis, "index": index})
    for axis in [0, 2, -1, -3]:
        case(fam, "squeeze", f"axis{axis}", lambda x: x.squeeze(axis), lambda: [q(1, 3, 1)], {"axis": axis})
    case(fam, "squeeze_all", "some", lambda x: x.squeeze(), lambda: [q(1, 3, 1, 2)])
    case(fam, "squeeze_all", "none", lambda x: x.squeeze(), lambda: [q(2, 3)])
    for axis in [0, 1, 2, -1, -2, -3]:
        case(fam, "unsqueeze", f"axis{axis}", lambda x: x.unsqueeze(axis), lambda: [q(2, 3)], {"axis": axis})
    for name, a, b in [("row", (3,), (2, 3)), ("column", (2, 1), (2, 3)), ("lead", (3, 1), (2, 3, 4)), ("scalar", (), (2, 2)), ("same", (2, 3), (2, 3)), ("empty", (1, 3), (0, 3))]:
        case(fam, "expand", name, lambda x: x.expand(*b), lambda: [q(*a)], {"shape": list(b)})
    for name, b in [("flat", (24,)), ("split", (2, 3, 2, 2)), ("join", (6, 4)), ("same", (2, 3, 4)), ("ones", (1, 24, 1))]:
        case(fam, "reshape", name, lambda x: x.reshape(*b), x3, {"shape": list(b)})
    case(fam, "reshape", "scalar", lambda x: x.reshape(()), lambda: [q(1, 1)], {"shape": []})
    case(fam, "reshape", "empty", lambda x: x.reshape(3, 0), [torch.zeros(0, 2)], {"shape": [3, 0]}, order=1)
    for a, b in [(0, 1), (1, 2), (0, -1), (-2, -1), (1, 1)]:
        case(fam, "flatten", f"{a}_{b}", lambda x: x.flatten(a, b), x3, {"from": a, "to": b})
    for name, shape, a, b in [("square", (3, 3), 0, 1), ("wide", (2, 4), 0, 1), ("tall", (4, 2), 1, 0), ("batch", (2, 3, 3), -2, -1), ("apart", (3, 2, 4), 0, 2), ("swapped", (2, 3, 4), -1, 0), ("empty", (0, 3), 0, 1)]:
        case(fam, "diagonal", name, lambda x: torch.diagonal(x, 0, a, b), lambda: [q(*shape)], {"a": a, "b": b})
    for name, shape, counts in [("both", (2, 3), (2, 2)), ("lead", (3,), (2, 2)), ("one", (2, 3), (1, 1)), ("zero", (2, 3), (0, 2)), ("scalar", (), (3,))]:
        case(fam, "repeat", name, lambda x: x.repeat(*counts), lambda: [q(*shape)], {"counts": list(counts)})
    for count, axis in [(2, 0), (3, 1), (1, -1), (0, 0), (2, -2)]:
        case(fam, "repeat_interleave", f"{count}_{axis}", lambda x: x.repeat_interleave(count, axis), lambda: [q(2, 3)], {"count": count, "axis": axis})
    for name, shape, counts, axis, d in [("rows", (3, 2), [2, 0, 3], 0, "i64"), ("last", (2, 3), [0, 2, 1], -1, "u32"), ("middle", (2, 3, 2), [1, 1, 4], 1, "u8"), ("none", (3,), [0, 0, 0], 0, "i64"), ("one", (2, 3), [2], 1, "i64"), ("empty", (0, 2), [], 0, "i64")]:
        case(fam, "repeat_interleave_by", name, lambda x, n: x.repeat_interleave(n, axis), lambda: [q(*shape), ints(counts, d)], {"axis": axis})
    for parts, axis in [(1, 0), (3, 0), (2, 1), (3, 1), (4, -1), (5, 0)]:
        case(fam, "chunk", f"{parts}_{axis}", lambda x: torch.chunk(x, parts, axis), lambda: [q(3, 7)], {"parts": parts, "axis": axis})
    for name, sizes, axis in [("two", [2, 5], 1), ("three", [1, 1, 1], 0), ("zero", [0, 7], -1), ("one", [3], 0)]:
        case(fam, "split", name, lambda x: torch.split(x, sizes, axis), lambda: [q(3, 7)], {"sizes": sizes, "axis": axis})
    for name, shape, axis in [("first", (3, 4), 0), ("middle", (2, 3, 4), 1), ("last", (2, 3, 4), -1), ("one", (1, 5), 0), ("vector", (4,), 0), ("empty", (2, 0), 0)]:
        case(fam, "unbind", name, lambda x: torch.unbind(x, axis), lambda: [q(*shape)], {"axis": axis})
    case(fam, "contiguous", "plain", lambda x: x * 1, x3)
    case(fam, "contiguous", "empty", lambda x: x * 1, [torch.zeros(0, 2)], order=1)
    for k in [0, 1, -1, 5, -5]:
        for op, f in {"tril": torch.tril, "triu": torch.triu}.items():
            case(fam, op, f"k{k}", lambda x: f(x, k), lambda: [q(2, 3, 4)], {"k": k})
    bad = torch.tensor([[nan, inf], [-inf, nan]])
    case(fam, "tril", "special", torch.tril, [bad], {"k": 0}, order=1)
    case(fam, "triu", "special", torch.triu, [bad], {"k": 0}, order=1)
    wide = t(1.001, -2.7, 0.1, 3.999, 65519.0, 1e-9, 300.5)
    for to, d in {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}.items():
        case(fam, "cast", f"f64_to_{to}", lambda x: x.to(d).double(), [wide], {"to": to}, order=1, dtypes=["f64"])
        case(fam, "cast", f"to_{to}", lambda x: x * 1, lambda: [q(3, 4)], {"to": to}, order=1)
        case(fam, "cast", f"special_to_{to}", lambda x: x.to(d).double(), [t(nan, inf, -inf, -0.0, 1e300, 65520.0, 65504.0)], {"to": to}, order=0, dtypes=["f64"])
    for to, values in {"i64": [-2.75, 2.75, 0.0, -0.5, 100.0], "u32": [2.75, 0.0, 100.0, 0.5], "u8": [2.75, 0.0, 255.0, 0.5]}.items():
        def g(x):
            y = x.trunc().long()
            y.kind = to
            return y
        case(fam, "cast", f"float_to_{to}", g, [t(*values)], {"to": to}, order=0)
    case(fam, "cast", "ints", lambda x: x.double(), [ints([-3, 0, 7])], {"to": "f64"}, order=0)
    for n, to in [(4, "f64"), (5, "f32"), (6, "bf16"), (4, "f16"), (4, "i64")]:
        def g(i):
            y = F.one_hot(i, n)
            return y if to == "i64" else y.double()
        for d in ["i64", "u32", "u8"]:
            case(fam, "one_hot", f"{n}_{to}_{d}", g, [ints([[0, 3], [1, 1]], d)], {"classes": n, "to": to}, order=0)
    case(fam, "masked_fill", "plain", lambda x, m: x.masked_fill(m.bool(), 1.5), lambda: [q(3, 4), mask(3, 4)], {"value": 1.5})
    case(fam, "masked_fill", "inf", lambda x, m: x.masked_fill(m.bool(), -inf), lambda: [q(3, 4), mask(3, 4)], {"value": -inf})
    case(fam, "masked_fill", "broadcast", lambda x, m: x.masked_fill(m.bool(), 0.0), lambda: [q(3, 4), mask(4)], {"value": 0.0})
    case(fam, "masked_fill", "special", lambda x, m: x.masked_fill(m.bool(), 2.0), [t(nan, inf, nan, 1.0), ints([1, 1, 0, 3], "u8")], {"value": 2.0}, order=1)
    w = lambda m, a, b: torch.where(m.bool(), a, b)
    for name, s in {"same": ((3, 4), (3, 4), (3, 4)), "broadcast": ((3, 1), (4,), (1, 4)), "scalars": ((2, 3), (), ()), "empty": ((0, 3), (3,), (3,))}.items():
        case(fam, "where_cond", name, w, lambda: [mask(*s[0]), q(*s[1]), q(*s[2])])
    case(fam, "where_cond", "special", w, [ints([1, 0, 1, 0], "u8"), t(1.0, nan, nan, inf), t(nan, 2.0, inf, nan)], order=1)
    for i, (a, b, c) in enumerate([(0.0, 5.0, 1.0), (1.0, 0.0, -0.25), (0.0, 1.0, 0.3), (3.0, 3.0, 1.0)]):
        case(fam, "arange", f"case{i}", lambda: torch.arange(a, b, c), [], {"start": a, "end": b, "step": c}, order=0)
    for i, (a, b, n) in enumerate([(0.0, 1.0, 5), (1.0, -1.0, 3), (2.0, 7.0, 1), (0.0, 1.0, 0)]):
        case(fam, "linspace", f"case{i}", lambda: torch.linspace(a, b, n), [], {"start": a, "end": b, "n": n}, order=0)
    for name, shape in {"three": (3,), "wide": (2, 4), "tall": (3, 1), "no_rows": (0, 2)}.items():
        case(fam, "eye", name, lambda: torch.eye(*shape), [], {"shape": list(shape)}, order=0)


# --- indices ------------------------------------------------------------------------------------------------------------

def indices():
    fam = "indices"
    for d in ["i64", "u32", "u8"]:
        case(fam, "embedding", f"plain_{d}", lambda w, i: w[i], lambda: [q(5, 3), ints([[0, 4], [2, 2]], d)], {"padding": None})
        case(fam, "index_select", f"axis0_{d}", lambda x, i: x.index_select(0, i), lambda: [q(4, 3), ints([3, 0, 3], d)], {"axis": 0})
        case(fam, "index_add", f"axis0_{d}", lambda x, i, s: x.index_add(0, i, s), lambda: [q(4, 3), ints([3, 0, 3], d), q(3, 3)], {"axis": 0})
        case(fam, "gather", f"last_{d}", lambda x, i: x.gather(-1, i), lambda: [q(3, 4), ints([[0, 3], [1, 1], [2, 0]], d)], {"axis": -1})
        case(fam, "scatter_add", f"axis0_{d}", lambda x, i, s: x.scatter_add(0, i, s), lambda: [q(4, 3), ints([[0, 3, 1], [0, 2, 1]], d), q(2, 3)], {"axis": 0})
    for p in [0, 2]:
        case(fam, "embedding", f"padding{p}", lambda w, i: F.embedding(i, w, padding_idx=p), lambda: [q(4, 3), ints([0, 2, 2, 3, 0])], {"padding": p})
    case(fam, "embedding", "scalar_id", lambda w, i: w[i], lambda: [q(4, 3), ints(2)], {"padding": None})
    case(fam, "embedding", "no_ids", lambda w, i: w[i], lambda: [q(4, 3), ints([])], {"padding": None}, order=1)
    for axis in [1, 2, -1, -3]:
        case(fam, "index_select", f"axis{axis}", lambda x, i: x.index_select(axis, i), lambda: [q(2, 3, 4), ints([1, 0, 1])], {"axis": axis})
        case(fam, "index_add", f"axis{axis}", lambda x, i, s: x.index_add(axis, i, s), lambda: [q(3, 3, 3), ints([1, 0, 1]), q(3, 3, 3)], {"axis": axis})
    case(fam, "index_add", "none", lambda x, i, s: x.index_add(0, i, s), lambda: [q(2, 3), ints([]), q(0, 3)], {"axis": 0}, order=1)
    case(fam, "index_select", "none", lambda x, i: x.index_select(0, i), lambda: [q(2, 3), ints([])], {"axis": 0}, order=1)
    case(fam, "gather", "axis0", lambda x, i: x.gather(0, i), lambda: [q(4, 3), ints([[3, 0, 1], [3, 3, 2]])], {"axis": 0})
    case(fam, "gather", "axis1", lambda x, i: x.gather(1, i), lambda: [q(2, 3, 2), ints([[[0, 2], [1, 1]], [[2, 0], [0, 0]]])], {"axis": 1})
    case(fam, "gather", "smaller", lambda x, i: x.gather(0, i), lambda: [q(4, 3), ints([[3, 0]])], {"axis": 0})
    case(fam, "gather", "empty", lambda x, i: x.gather(1, i), lambda: [q(2, 3), ints([[], []])], {"axis": 1}, order=1)
    case(fam, "scatter_add", "last", lambda x, i, s: x.scatter_add(-1, i, s), lambda: [q(2, 4), ints([[0, 0, 3], [1, 2, 1]]), q(2, 3)], {"axis": -1})
    case(fam, "scatter_add", "middle", lambda x, i, s: x.scatter_add(1, i, s), lambda: [q(2, 3, 2), ints([[[0, 2], [1, 1]], [[2, 0], [0, 0]]]), q(2, 2, 2)], {"axis": 1})
    def put_product(x, i, s, axis, own):
        """Tensor.scatter_reduce's product factor by factor: its own second derivatives cancel, and fail at zeros."""
        groups = {}
        for at in itertools.product(*map(range, i.shape)):
            to = list(at)
            to[axis] = int(i[at])
            groups.setdefault(tuple(to), []).append(s[at])
        out = []
        for at in itertools.product(*map(range, x.shape)):
            put = groups.get(at, [])
            out.append(functools.reduce(torch.mul, ([x[at]] if own or not put else []) + put))
        y = torch.stack(out).reshape(x.shape)
        torch.testing.assert_close(y, x.scatter_reduce(axis, i, s, "prod", include_self=own))
        return y

    words = {"Sum": "sum", "Mean": "mean", "Prod": "prod", "Max": "amax", "Min": "amin"}
    apart = lambda shape, off: (((torch.arange(math.prod(shape)) * 7 + 3) % 29) * 0.5 - 6.0 + off).double().reshape(shape)
    for by, word in words.items():
        for own in [False, True]:
            f = lambda x, i, s, axis=0: put_product(x, i, s, axis, own) if by == "Prod" else x.scatter_reduce(axis, i, s, word, include_self=own)
            op = "scatter_fold" if own and by in ("Prod", "Max", "Min") else "scatter_reduce"
            o = {"axis": 0, "by": by, "include_self": own}
            tag = f"{by}{'_self' if own else ''}"
            for d in ["i64", "u32", "u8"]:
                case(fam, op, f"{tag}_{d}", f, lambda: [apart((4, 3), 0.0), ints([[0, 3, 1], [0, 2, 1], [3, 3, 1]], d), apart((3, 3), 0.25)], o, order=2 if d == "i64" else 1)
            case(fam, op, f"{tag}_last", lambda x, i, s: f(x, i, s, -1), lambda: [apart((2, 4), 0.0), ints([[0, 0, 3], [1, 2, 1]]), apart((2, 3), 0.25)], {**o, "axis": -1})
            case(fam, op, f"{tag}_smaller", lambda x, i, s: f(x, i, s, 1), lambda: [apart((2, 3, 2), 0.0), ints([[[0], [1]]]), apart((1, 2, 1), 0.25)], {**o, "axis": 1})
            case(fam, op, f"{tag}_none", f, lambda: [apart((3,), 0.0), ints([]), torch.zeros(0)], o, order=1)
            if by in ("Max", "Min"):
                tied = [ints([0, 0, 1, 1, 1]), t(1.0, 1.0, 2.0, 2.0, 3.0)]
                case(fam, op, f"{tag}_ties", f, [t(1.0 if own else 5.0, 2.5, 2.0), *tied], o, order=1, note="ties share")
                if not own:
                    case(fam, op, f"left_out_{by}", f, [t(1.0, 3.0 if by == "Max" else 2.0, 2.0), *tied], o, order=1)
            if by == "Prod":
                case(fam, op, f"{tag}_one_zero", f, [t(2.0, 0.5, 3.0), ints([0, 0, 1, 1]), t(0.0, 1.5, -2.0, 0.5)], o)
                case(fam, op, f"{tag}_zeros", f, [t(2.0, 0.0, 3.0), ints([0, 0, 1, 1]), t(0.0, 0.0, 0.0, 0.5)], o)


# --- products -----------------------------------------------------------------------------------------------------------

def products():
    fam = "products"
    for name, a, b in [("plain", (2, 3), (3, 4)), ("batch", (2, 2, 3), (2, 3, 2)), ("broadcast", (3, 1, 2, 3), (2, 3, 2)), ("one_side", (2, 2, 3), (3, 2)), ("inner0", (2, 0), (0, 3)), ("empty", (0, 2), (2, 3)), ("long", (2, 65), (65, 2))]:
        flip = lambda s: s[:-2] + (s[-1], s[-2])
        order = 1 if name == "long" else 2
        case(fam, "matmul", f"nn_{name}", torch.matmul, lambda: [q(*a), q(*b)], {"form": "nn"}, order=order)
        case(fam, "matmul", f"nt_{name}", lambda x, y: x @ y.mT, lambda: [q(*a), q(*flip(b))], {"form": "nt"}, order=order)
        case(fam, "matmul", f"tn_{name}", lambda x, y: x.mT @ y, lambda: [q(*flip(a)), q(*b)], {"form": "tn"}, order=order)
    for name, a, b in [("vector_matrix", (3,), (3, 2)), ("matrix_vector", (2, 3), (3,)), ("vectors", (3,), (3,)), ("vector_batch", (3,), (2, 3, 2)), ("batch_vector", (2, 2, 3), (3,))]:
        case(fam, "matmul", f"nn_{name}", torch.matmul, lambda: [q(*a), q(*b)], {"form": "nn"})
    special = torch.tensor([[nan, 0.0], [inf, 1.0]])
    case(fam, "matmul", "special", torch.matmul, [special, torch.tensor([[0.0, 1.0], [2.0, -1.0]])], {"form": "nn"}, order=1)
    for n in [0, 1, 5]:
        case(fam, "dot", f"n{n}", torch.dot, lambda: [q(n), q(n)])
    for m, n in [(2, 3), (1, 1), (0, 2)]:
        case(fam, "outer", f"{m}_{n}", torch.outer, lambda: [q(m), q(n)])
    for name, s in {"vector": (3,), "rows": (4, 3), "batch": (2, 2, 3), "none": (0, 3)}.items():
        case(fam, "linear", f"{name}", lambda x, w: F.linear(x, w), lambda: [q(*s), q(2, 3)], {"bias": False})
        case(fam, "linear", f"{name}_bias", F.linear, lambda: [q(*s), q(2, 3), q(2)], {"bias": True})
    case(fam, "linear", "no_inputs", F.linear, lambda: [q(2, 0), q(3, 0), q(3)], {"bias": True}, order=1)
    for kind, size in [("Q8_0", 34), ("Q4_0", 18)]:
        def blocks(w):
            """llama.cpp's block_q8_0 and block_q4_0: a half-precision scale, then whole numbers."""
            w = w.reshape(*w.shape[:-1], -1, size).to(torch.int64)
            d = (w[..., 0] + 256 * w[..., 1]).to(torch.int16).view(torch.float16).double()
            b = w[..., 2:]
            n = torch.where(b > 127, b - 256, b) if kind == "Q8_0" else torch.cat([b % 16, b // 16], -1) - 8
            return (n * d[..., None]).flatten(-2)
        def weight(rows, per_row):
            w = torch.randint(0, 256, (rows, per_row, size), generator=rng)
            d = (q(rows, per_row) / 8).half().view(torch.int16).to(torch.int64) & 0xFFFF
            w[..., 0], w[..., 1] = d % 256, d // 256
            w = w.reshape(rows, per_row * size)
            w.kind = "u8"
            return w
        for name, rows, per_row, lead in [("one", 3, 1, (32,)), ("two", 2, 2, (2, 64)), ("batch", 2, 1, (2, 1, 32))]:
            case(fam, "quant_linear", f"{kind}_{name}", lambda x, w: x @ blocks(w).T, lambda: [q(*lead), weight(rows, per_row)], {"kind": kind})
        for to in ["f64", "f32", "bf16", "f16"]:
            case(fam, "dequantize", f"{kind}_{to}", blocks, lambda: [weight(2, 2)], {"kind": kind, "to": to}, order=0)


# --- einsum -------------------------------------------------------------------------------------------------------------

def einsum():
    fam = "einsum"
    given = [("i...->i", [(2, 3, 4)]), ("...->", [(2, 3, 4)]), ("...ij->ij", [(2, 3, 4)]), ("...k,...k->", [(2, 3, 4), (2, 3, 4)]), ("ij,...->ij", [(4, 2), (1,)]), ("ij,jk", [(2, 3), (3, 2)]), ("ii", [(3, 3)]), ("ii->i", [(3, 3)]), ("b...d,d->b...", [(2, 3, 4), (4,)]), ("...i,...i->...", [(2, 1, 3), (4, 3)]), ("i,j,k->kji", [(2,), (3,), (2,)]), ("ij->", [(0, 3)]), (",i->i", [(), (3,)]), ("ba,b", [(2, 3), (2,)])]
    for i, (e, s) in enumerate(given):
        case(fam, "einsum", f"given{i}", lambda *x: torch.einsum(e, *x), lambda: [q(*a) for a in s], {"equation": e})
    pick = torch.Generator().manual_seed(7)
    r = lambda n: int(torch.randint(0, n, (1,), generator=pick))
    made = 0
    seen = set()
    while made < 200:
        size = {c: 1 + r(3) for c in "abcde"}
        lead = [1 + r(3) for _ in range(r(3))]
        terms, shapes_ = [], []
        for _ in range(1 + r(3)):
            labels = ["abcde"[r(5)] for _ in range(r(4))]
            if len(set(labels)) < len(labels) and r(3):
                labels = list(dict.fromkeys(labels))
            dims = [size[c] for c in labels]
            if r(2):
                at = r(len(labels) + 1)
                own = [1 if r(4) == 0 else n for n in lead[r(len(lead) + 1) if r(3) == 0 and lead else 0:]]
                terms.append("".join(labels[:at]) + "..." + "".join(labels[at:]))
                dims = dims[:at] + own + dims[at:]
            else:
                terms.append("".join(labels))
            shapes_.append(tuple(dims))
        used = [c for c in "abcde" if any(c in x.replace("...", "") for x in terms)]
        eq = ",".join(terms)
        how = r(4)
        if how:
            out = [c for c in used if r(2)]
            order = torch.randperm(len(out), generator=pick).tolist()
            out = "".join(out[i] for i in order)
            if any("..." in x for x in terms) and how > 1:
                at = r(len(out) + 1)
                out = out[:at] + "..." + out[at:]
            eq += "->" + out
        if eq in seen or max([math.prod(s) for s in shapes_] + [1]) > 40:
            continue
        try:
            y = torch.einsum(eq, *[torch.zeros(s) for s in shapes_])
        except RuntimeError:
            continue
        if y.numel() > 60:
            continue
        seen.add(eq)
        case(fam, "einsum", f"random{made}", lambda *x: torch.einsum(eq, *x), lambda: [q(*s) for s in shapes_], {"equation": eq}, order=2 if made % 8 == 0 else 1)
        made += 1


# --- norms, gates, dropout ----------------------------------------------------------------------------------------------

def rms(x, w, eps, axes=1):
    y = x / torch.sqrt(x.square().mean(list(range(-axes, 0)), keepdim=True) + eps)
    return y if w is None else y * w


MASK = (1 << 32) - 1


def philox(ctr, key):
    """Philox 4x32-10 (Salmon et al., SC'11)."""
    c, k = list(ctr), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK, (a >> 32) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def kept(seed, n, keep):
    """Which of n elements the key `seed` keeps with probability `keep`."""
    words = [philox([i // 4, 0, 0, 0], [seed & MASK, seed >> 32])[i % 4] for i in range(n)]
    return torch.tensor([w < round(keep * 2**32) for w in words], dtype=torch.float64)


def norms():
    fam = "norms"
    for name, shape, axes, eps in [("one", (3, 5), 1, 1e-5), ("two", (2, 3, 4), 2, 1e-5), ("batch", (2, 2, 4), 1, 0.5), ("single", (4,), 1, 1e-3), ("zero_eps", (2, 5), 1, 0.0)]:
        dims = shape[-axes:]
        for w in [False, True]:
            for b in [False, True]:
                # PyTorch's own second derivative refuses a bias without a weight: the bias is added apart.
                f = lambda x, *p: F.layer_norm(x, dims, p[0], p[-1] if b else None, eps) if w else F.layer_norm(x, dims, None, None, eps) + (p[-1] if b else 0.0)
                o = {"axes": axes, "eps": eps, "weight": w, "bias": b}
                tag = f"{name}{'_w' if w else ''}{'_b' if b else ''}"
                make = lambda: [distinct(*shape)] + [q(*dims)] * w + [q(*dims)] * b
                case(fam, "layer_norm", tag, f, make, o)
                if name != "zero_eps":
                    g = lambda x, r, *p: (f(x + r, *p), x + r)
                    case(fam, "add_layer_norm", tag, g, lambda: [distinct(*shape), q(*shape)] + [q(*dims)] * w + [q(*dims)] * b, o, order=2 if w == b else 1)
            if axes == 1:
                o = {"axes": 1, "eps": eps, "weight": w, "bias": False}
                tag = f"{name}{'_w' if w else ''}"
                case(fam, "rms_norm", tag, lambda x, *p: rms(x, p[0] if w else None, eps), lambda: [q(*shape)] + [q(*dims)] * w, o)
                case(fam, "add_rms_norm", tag, lambda x, r, *p: (rms(x + r, p[0] if w else None, eps), x + r), lambda: [q(*shape), q(*shape)] + [q(*dims)] * w, o)
    o = {"axes": 1, "eps": 1e-5, "weight": True, "bias": True}
    rows = torch.tensor([[2.75] * 7, [0.0] * 7])
    case(fam, "layer_norm", "constant_rows", lambda x, w, b: F.layer_norm(x, (7,), w, b, 1e-5), lambda: [rows, q(7), q(7)], o)
    case(fam, "layer_norm", "special", lambda x, w, b: F.layer_norm(x, (3,), w, b, 1e-5), lambda: [torch.tensor([[nan, 1.0, 2.0], [inf, 1.0, 2.0], [1.0, 2.0, 3.0]]), q(3), q(3)], o, order=1)
    case(fam, "layer_norm", "no_rows", lambda x, w, b: F.layer_norm(x, (3,), w, b, 1e-5), lambda: [torch.zeros(0, 3), q(3), q(3)], o, order=1)
    case(fam, "layer_norm", "extreme", lambda x, w, b: F.layer_norm(x, (3,), w, b, 1e-5), lambda: [torch.tensor([[2.0**-60, 2.0**-59, 0.0], [1024.0, 1025.0, 1027.0]]), q(3), q(3)], o, order=1, dtypes=["f64", "f32"])
    o = {"axes": 1, "eps": 1e-5, "weight": True, "bias": False}
    case(fam, "rms_norm", "constant_rows", lambda x, w: rms(x, w, 1e-5), lambda: [rows, q(7)], o)
    case(fam, "rms_norm", "special", lambda x, w: rms(x, w, 1e-5), lambda: [torch.tensor([[nan, 1.0, 2.0], [inf, 1.0, 2.0], [1.0, 2.0, 3.0]]), q(3)], o, order=1)
    case(fam, "rms_norm", "no_rows", lambda x, w: rms(x, w, 1e-5), lambda: [torch.zeros(0, 3), q(3)], o, order=1)
    gates = {"swiglu": F.silu, "geglu": F.gelu, "geglu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    for op, f in gates.items():
        for name, s in {"plain": (3, 4), "scalar": (), "empty": (0, 2)}.items():
            case(fam, op, name, lambda g, u: f(g) * u, lambda: [q(*s), q(*s)])
        case(fam, op, "special", lambda g, u: f(g) * u, [t(nan, inf, 0.0, -0.0, 1.0, 2.0, 90.0, -90.0), t(1.0, 2.0, nan, 3.0, inf, 0.0, 0.5, 0.5)], order=1)
    for p in [0.0, 0.25, 0.5, 1.0]:
        for seed in [1, 2**40 + 3]:
            keep = kept(seed, 12, 1 - p).reshape(3, 4)
            scale = 0.0 if p == 1.0 else 1 / (1 - p)
            o = {"p": p, "seed": seed}
            case(fam, "dropout", f"p{p}_{seed}", lambda x: x * keep * scale, lambda: [q(3, 4)], o)
            case(fam, "dropout_add", f"p{p}_{seed}", lambda x, r: r + x * keep * scale, lambda: [q(3, 4), q(3, 4)], o)
    keep = kept(5, 6, 0.5)
    case(fam, "dropout", "special", lambda x: torch.where(keep == 1, x / 0.5, torch.zeros_like(x)), [t(nan, inf, -inf, nan, inf, 1.0)], {"p": 0.5, "seed": 5}, order=1)


# --- losses -------------------------------------------------------------------------------------------------------------

def reduced(x, how):
    return {"None": lambda: x, "Sum": x.sum, "Mean": x.mean}[how]()


def xent(x, y, w=None, ignore=-100, smoothing=0.0, reduction="Mean", z=0.0):
    """F.cross_entropy over the last axis, and the z-loss of PaLM."""
    c = x.shape[-1]
    lse = x.logsumexp(-1)
    ig = -100 if ignore is None else ignore
    loss = F.cross_entropy(x.reshape(-1, c), y.reshape(-1), w, ignore_index=ig, label_smoothing=smoothing, reduction="none").reshape(y.shape)
    own = torch.ones(c) if w is None else w
    live = (y != ig)
    wy = torch.where(live, own[y.clamp(0, c - 1)], torch.zeros(y.shape))
    loss = loss + z * wy * lse.square()
    return loss if reduction == "None" else loss.sum() if reduction == "Sum" else loss.sum() / wy.sum()


def soft_xent(x, y, w=None, smoothing=0.0, reduction="Mean", z=0.0):
    """F.cross_entropy with probabilities over the last axis, and a z-loss that counts as much as they do."""
    c = x.shape[-1]
    x2, y2 = x.reshape(-1, c), y.reshape(-1, c)
    loss = F.cross_entropy(x2, y2, w, label_smoothing=smoothing, reduction="none").reshape(x.shape[:-1])
    if z:
        loss = loss + z * x.logsumexp(-1).square() * (y if w is None else y * w).sum(-1)
    return reduced(loss, reduction)


def losses():
    fam = "losses"
    n = 0
    for reduction in ["Mean", "Sum", "None"]:
        for weighted in [False, True]:
            for smoothing in [0.0, 0.125]:
                for z in [0.0, 0.25]:
                    o = {"ignore": -100 if n % 3 else None, "smoothing": smoothing, "reduction": reduction, "weighted": weighted, "z": z}
                    f = lambda x, y, w=None: soft_xent(x, y, w, smoothing, reduction, z)
                    cw = [t(0.5, 1.0, 2.0, 0.25, 1.5)] * weighted
                    case(fam, "soft_cross_entropy", f"{reduction}{n}", f, lambda: [q(4, 5), q(4, 5).abs() / 4] + cw, o, diff=[0, 1], order=2 if n % 2 == 0 else 1)
                    n += 1
        o = {"ignore": -100, "smoothing": 0.0, "reduction": reduction, "weighted": False, "z": 0.0}
        f = lambda x, y: soft_xent(x, y, reduction=reduction)
        case(fam, "soft_cross_entropy", f"no_rows_{reduction}", f, [torch.zeros(0, 3), torch.zeros(0, 3)], o, diff=[0, 1], order=1)
        case(fam, "soft_cross_entropy", f"one_hot_{reduction}", f, lambda: [q(3, 3), torch.eye(3)], o, diff=[0, 1])
    o = {"ignore": -100, "smoothing": 0.0, "reduction": "Mean", "weighted": False, "z": 0.0}
    case(fam, "soft_cross_entropy", "batch", soft_xent, lambda: [q(2, 3, 4), q(2, 3, 4).abs() / 4], o, diff=[0, 1])
    case(fam, "soft_cross_entropy", "row", lambda x, y: F.cross_entropy(x, y), lambda: [q(4), t(0.25, 0.5, 0.0, 0.25)], o, diff=[0, 1])
    case(fam, "soft_cross_entropy", "uniform", lambda x, y: soft_xent(x, y, smoothing=1.0), lambda: [q(2, 3), q(2, 3).abs()], {**o, "smoothing": 1.0}, diff=[0, 1])
    rows = torch.tensor([[0.0, -inf, 1.0], [nan, 0.0, 1.0], [1000.0, 0.0, -1000.0], [0.0, inf, 1.0], [-inf, -inf, -inf], [0.0, -inf, 1.0]])
    case(fam, "soft_cross_entropy", "special", lambda x, y: soft_xent(x, y, reduction="None"), [rows, torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])], {**o, "reduction": "None"}, diff=[0, 1], order=1)
    y6 = lambda: ints([1, -100, 0, 4, 4, 2])
    n = 0
    for reduction in ["Mean", "Sum", "None"]:
        for weighted in [False, True]:
            for smoothing in [0.0, 0.125]:
                for z in [0.0, 0.25]:
                    o = {"ignore": -100, "smoothing": smoothing, "reduction": reduction, "weighted": weighted, "z": z}
                    f = lambda x, y, w=None: xent(x, y, w, -100, smoothing, reduction, z)
                    cw = [t(0.5, 1.0, 2.0, 0.25, 1.5)] * weighted
                    case(fam, "cross_entropy", f"{reduction}{n}", f, lambda: [q(6, 5), y6()] + cw, o, diff=[0], order=2 if n % 2 == 0 else 1)
                    g = lambda x, m, y, w=None: f(x @ m.T, y, w)
                    case(fam, "linear_cross_entropy", f"{reduction}{n}", g, lambda: [q(6, 3), q(5, 3), y6()] + cw, o, diff=[0, 1], order=2 if n % 2 == 0 else 1)
                    b = lambda x, m, y, *w: xent(x @ m.T + w[-1], y, w[0] if weighted else None, -100, smoothing, reduction, z)
                    case(fam, "linear_cross_entropy", f"{reduction}{n}_bias", b, lambda: [q(6, 3), q(5, 3), y6()] + cw + [q(5)], {**o, "bias": True}, diff=[0, 1, 4 if weighted else 3], order=2 if n % 2 == 1 else 1)
                    n += 1
            o = {"ignore": -100, "reduction": reduction, "weighted": weighted}
            case(fam, "nll_loss", f"{reduction}{'_w' if weighted else ''}", lambda x, y, w=None: F.nll_loss(x, y, w, reduction=reduction.lower()), lambda: [q(6, 5), y6()] + [t(0.5, 1.0, 2.0, 0.25, 1.5)] * weighted, o, diff=[0])
            case(fam, "bce_with_logits", f"{reduction}{'_w' if weighted else ''}", lambda x, y, w=None: F.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction=reduction.lower()), lambda: [q(3, 4), unit(3, 4).abs()] + [pos(4)] * weighted, {"reduction": reduction, "weighted": weighted}, diff=[0, 1])
        case(fam, "mse_loss", reduction, lambda x, y: F.mse_loss(x, y, reduction=reduction.lower()), lambda: [q(3, 4), q(3, 4)], {"reduction": reduction})
    base = {"ignore": -100, "smoothing": 0.0, "reduction": "Mean", "weighted": False, "z": 0.0}
    for ig, y in [(2, [1, 2, 0, 4]), (None, [1, 3, 0, 4]), (0, [0, 0, 1, 2])]:
        o = {**base, "ignore": ig}
        case(fam, "cross_entropy", f"ignore_{ig}", lambda x, y: xent(x, y, ignore=ig), lambda: [q(4, 5), ints(y)], o, diff=[0])
        case(fam, "linear_cross_entropy", f"ignore_{ig}", lambda x, m, y: xent(x @ m.T, y, ignore=ig), lambda: [q(4, 3), q(5, 3), ints(y)], o, diff=[0, 1])
        case(fam, "nll_loss", f"ignore_{ig}", lambda x, y: F.nll_loss(x, y, ignore_index=-100 if ig is None else ig), lambda: [q(4, 5), ints(y)], {"ignore": ig, "reduction": "Mean", "weighted": False}, diff=[0])
    for reduction in ["Mean", "Sum", "None"]:
        o = {**base, "reduction": reduction}
        case(fam, "cross_entropy", f"all_ignored_{reduction}", lambda x, y: xent(x, y, reduction=reduction), lambda: [q(2, 3), ints([-100, -100])], o, diff=[0], order=1)
        case(fam, "nll_loss", f"all_ignored_{reduction}", lambda x, y: F.nll_loss(x, y, reduction=reduction.lower()), lambda: [q(2, 3), ints([-100, -100])], {"ignore": -100, "reduction": reduction, "weighted": False}, diff=[0], order=1)
        case(fam, "mse_loss", f"special_{reduction}", lambda x, y: F.mse_loss(x, y, reduction=reduction.lower()), [t(nan, 1.0, inf), t(0.0, 1.0, 2.0)], {"reduction": reduction}, order=1)
        case(fam, "mse_loss", f"empty_{reduction}", lambda x, y: F.mse_loss(x, y, reduction=reduction.lower()), [torch.zeros(0, 2), torch.zeros(0, 2)], {"reduction": reduction}, order=1)
        case(fam, "bce_with_logits", f"special_{reduction}", lambda x, y: reduced(y * torch.logaddexp(-x, torch.zeros_like(x)) + (1 - y) * torch.logaddexp(x, torch.zeros_like(x)), reduction), [t(90.0, -90.0, 0.0, 90.0, -90.0), t(1.0, 0.0, 0.5, 0.0, 1.0)], {"reduction": reduction, "weighted": False}, order=1)
        case(fam, "bce_with_logits", f"empty_{reduction}", lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction=reduction.lower()), [torch.zeros(0), torch.zeros(0)], {"reduction": reduction, "weighted": False}, order=1)
    none = {**base, "reduction": "None"}
    rows = torch.tensor([[0.0, -inf, 1.0], [nan, 0.0, 1.0], [1000.0, 0.0, -1000.0], [0.0, inf, 1.0]])
    case(fam, "cross_entropy", "special", lambda x, y: xent(x, y, reduction="None"), [rows, ints([0, 0, 2, 0])], none, diff=[0], order=1)
    case(fam, "cross_entropy", "u8_batch", lambda x, y: xent(x, y), lambda: [q(2, 3, 4), ints([[0, 3, 1], [2, 2, 0]], "u8")], base, diff=[0])
    case(fam, "cross_entropy", "u32_row", lambda x, y: xent(x[None], y[None]), lambda: [q(4), ints(3, "u32")], base, diff=[0])
    case(fam, "nll_loss", "u8_batch", lambda x, y: F.nll_loss(x.reshape(-1, 4), y.reshape(-1)), lambda: [q(2, 3, 4), ints([[0, 3, 1], [2, 2, 0]], "u8")], {"ignore": -100, "reduction": "Mean", "weighted": False}, diff=[0])
    case(fam, "linear_cross_entropy", "batch", lambda x, m, y: xent(x @ m.T, y), lambda: [q(2, 3, 4), q(5, 4), ints([[0, 3, 1], [2, -100, 4]])], base, diff=[0, 1])
    case(fam, "linear_cross_entropy", "axes_bias", lambda x, m, y, b: F.linear_cross_entropy(x.reshape(-1, 4), m, y.reshape(-1), linear_bias=b), lambda: [q(2, 2, 3, 4), q(5, 4), ints([[[0, 3, 1], [2, -100, 4]], [[1, 1, 0], [4, 2, 3]]]), q(5)], {**base, "bias": True}, diff=[0, 1, 3])
    case(fam, "linear_cross_entropy", "all_ignored", lambda x, m, y: xent(x @ m.T, y), lambda: [q(2, 3), q(4, 3), ints([-100, -100])], base, diff=[0, 1], order=1)
    case(fam, "mse_loss", "large", lambda x, y: F.mse_loss(x, y), [t(1.5 * 2.0**126, 1.0), t(0.0, 0.0)], {"reduction": "Mean"}, order=1, dtypes=["f64", "f32"])


# --- attention ----------------------------------------------------------------------------------------------------------

def attend(q_, k, v, m=None, causal=False, window=None, softcap=None, scale=None, keep=None, boolean=False):
    """F.scaled_dot_product_attention by its documented formula, with what it lacks; the last query sees the last key."""
    group = q_.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    s = q_ @ k.mT * (1 / math.sqrt(q_.shape[-1]) if scale is None else scale)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    tq, tk = s.shape[-2:]
    ahead = torch.arange(tk)[None] - torch.arange(tq)[:, None] - (tk - tq)
    seen = torch.ones(tq, tk, dtype=torch.bool)
    if causal:
        seen &= ahead <= 0
    if window:
        seen &= (ahead >= -window[0]) & (ahead <= window[1])
    seen = seen.expand(s.shape)
    if m is not None and boolean:
        seen = seen & m.bool()
    elif m is not None:
        s = s + m
        seen = seen & (m != -inf)
    s = s.masked_fill(~seen, -inf)
    none = ~seen.any(-1, keepdim=True)
    p = torch.softmax(s.masked_fill(none, 0.0), -1).masked_fill(none, 0.0)
    p = p.masked_fill(~seen, 0.0)
    if keep is not None:
        p = p * keep
    return p @ v


def attention():
    fam = "attention"
    op = "scaled_dot_product_attention"
    big = 2**63
    def put(name, sq, sk, dv, o, m=None, order=2, boolean=False, seed=None):
        keep = None
        if o.get("dropout"):
            n = math.prod(sq[:-1]) * sk[-2]
            keep = kept(o["seed"], n, 1 - o["dropout"]).reshape(*sq[:-1], sk[-2]) * (0.0 if o["dropout"] == 1.0 else 1 / (1 - o["dropout"]))
        known = {k: o.get(k) for k in ["causal", "window", "softcap", "scale"]}
        f = lambda q_, k, v, m=None: attend(q_, k, v, m, **known, keep=keep, boolean=boolean)
        make = lambda: [q(*sq), q(*sk), q(*sk[:-1], dv)] + ([m()] if m else [])
        case(fam, op, name, f, make, {**o, "mask": ("bool" if boolean else "add") if m else None, "packed": False}, order=order)
    s = (1, 2, 4, 3)
    put("plain", s, s, 3, {})
    put("rank3", (2, 3, 4), (2, 3, 4), 2, {})
    put("causal", s, s, 3, {"causal": True})
    put("causal_more_keys", (2, 2, 3), (2, 5, 3), 3, {"causal": True})
    put("causal_fewer_keys", (2, 4, 3), (2, 2, 3), 3, {"causal": True}, order=1)
    put("grouped", (1, 4, 3, 2), (1, 2, 3, 2), 2, {})
    put("grouped_causal_cap", (1, 4, 3, 2), (1, 1, 3, 2), 2, {"causal": True, "softcap": 2.0})
    put("scale", s, s, 3, {"scale": 0.25})
    put("negative_scale", s, s, 3, {"scale": -1.0}, order=1)
    put("softcap", s, s, 3, {"softcap": 0.5})
    for left, right in [(0, 0), (1, 0), (1, 1), (0, 2), (9, 1)]:
        put(f"window_{left}_{right}", (2, 5, 2), (2, 5, 2), 2, {"window": [left, right]}, order=2 if right == 0 else 1)
    put("window_causal", (2, 3, 2), (2, 5, 2), 2, {"window": [2, 2], "causal": True}, order=1)
    for p in [0.25, 1.0]:
        put(f"dropout{p}", s, s, 3, {"dropout": p, "seed": 11})
    put("dropout_all", s, s, 3, {"dropout": 0.5, "seed": 12, "causal": True, "softcap": 1.5, "scale": 0.75})
    put("mask_add", s, s, 3, {}, lambda: q(1, 2, 4, 4))
    put("mask_add_row", s, s, 3, {"softcap": 1.0}, lambda: q(4, 4))
    put("mask_bool", s, s, 3, {}, lambda: mask(4, 4), boolean=True)
    put("mask_bool_keys", s, s, 3, {"causal": True}, lambda: ints([[[[1, 0, 1, 1]]]], "u8"), boolean=True)
    put("mask_all_hidden", (1, 2, 2), (1, 2, 2), 2, {}, lambda: ints([[0, 0], [1, 0]], "u8"), boolean=True, order=1)
    put("mask_minus_inf", (1, 2, 2), (1, 2, 2), 2, {}, lambda: torch.tensor([[-inf, -inf], [0.5, -inf]]), order=1)
    put("no_keys", (1, 2, 2), (1, 0, 2), 2, {}, order=1)
    put("no_queries", (1, 0, 2), (1, 2, 2), 2, {}, order=1)
    put("one_key", (1, 3, 2), (1, 1, 2), 2, {})
    put("long", (1, 3, 4), (1, 70, 4), 2, {}, order=1)

    def packed(q_, k, v, oq, ok, causal=False, window=None):
        parts = [attend(q_[..., a:b, :], k[..., c:d, :], v[..., c:d, :], causal=causal, window=window) for a, b, c, d in zip(oq.tolist(), oq.tolist()[1:], ok.tolist(), ok.tolist()[1:])]
        return torch.cat(parts, -2)
    for name, oq, ok, o in [("plain", [0, 2, 5], [0, 2, 5], {}), ("causal", [0, 3, 5], [0, 4, 6], {"causal": True}), ("window", [0, 1, 5], [0, 1, 5], {"window": [1, 0]}), ("empty_sequence", [0, 2, 2, 4], [0, 3, 4, 5], {})]:
        case(fam, op, f"packed_{name}", lambda a, b, c, d, e: packed(a, b, c, d, e, **o), lambda: [q(2, oq[-1], 3), q(2, ok[-1], 3), q(2, ok[-1], 2), ints(oq), ints(ok)], {**o, "mask": None, "packed": True})

    def rotate(x, at, base, style, dim):
        d = x.shape[-1] if dim is None else dim
        theta = at[..., None].double() * base ** (-2.0 * torch.arange(d // 2).double() / d)
        if at.dim() == 2:
            theta = theta.reshape(at.shape[0], *[1] * (x.dim() - 3), at.shape[1], d // 2)
        r, rest = x[..., :d], x[..., d:]
        if style == "Half":
            a, b = r[..., : d // 2], r[..., d // 2:]
            y = torch.cat([a * theta.cos() - b * theta.sin(), b * theta.cos() + a * theta.sin()], -1)
        else:
            a, b = r[..., 0::2], r[..., 1::2]
            y = torch.stack([a * theta.cos() - b * theta.sin(), b * theta.cos() + a * theta.sin()], -1).flatten(-2)
        return torch.cat([y, rest], -1)
    for style in ["Half", "Interleaved"]:
        for base in [10000.0, 500.0]:
            for dim in [None, 4]:
                o = {"style": style, "base": base, "rotary_dim": dim, "start": 0, "given": False}
                tag = f"{style}_{int(base)}_{dim}"
                case(fam, "rope", tag, lambda x: rotate(x, torch.arange(3), base, style, dim), lambda: [q(2, 3, 6)], o)
                case(fam, "rope_with_key", tag, lambda x, y: (rotate(x, torch.arange(3), base, style, dim), rotate(y, torch.arange(3), base, style, dim)), lambda: [q(1, 2, 3, 6), q(1, 1, 3, 6)], o)
        o = {"style": style, "base": 10000.0, "rotary_dim": None, "start": 7, "given": False}
        case(fam, "rope", f"{style}_start", lambda x: rotate(x, torch.arange(7, 10), 1e4, style, None), lambda: [q(3, 4)], o)
        case(fam, "rope_with_key", f"{style}_start", lambda x, y: (rotate(x, torch.arange(7, 10), 1e4, style, None), rotate(y, torch.arange(7, 10), 1e4, style, None)), lambda: [q(3, 4), q(3, 4)], o)
        o = {**o, "start": 0, "given": True}
        case(fam, "rope", f"{style}_given", lambda x, p: rotate(x, p, 1e4, style, None), lambda: [q(2, 3, 4), ints([5, 0, 131072])], o)
        case(fam, "rope", f"{style}_given_batch", lambda x, p: rotate(x, p, 1e4, style, None), lambda: [q(2, 2, 3, 4), ints([[5, 0, 9], [1, 1, 2]])], o)
        case(fam, "rope_with_key", f"{style}_given", lambda x, y, p: (rotate(x, p, 1e4, style, None), rotate(y, p, 1e4, style, None)), lambda: [q(2, 3, 4), q(1, 3, 4), ints([5, 0, 9])], o)


# --- convolutions -------------------------------------------------------------------------------------------------------

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolutions():
    fam = "convolutions"

    def slide(x, w, b, o):
        """PyTorch's convolution, with padding that differs at both ends."""
        p, d = o["padding"], x.dim() - 2
        if not isinstance(p, str) and len(p) == 2 * d:
            x, p = F.pad(x, [n for a in reversed(range(d)) for n in p[2 * a:2 * a + 2]]), [0] * d
        return CONV[d](x, w, b, o["stride"], p, o["dilation"], o["groups"])

    def options(d, stride=None, padding=None, dilation=None, groups=1):
        return {"stride": stride or [1] * d, "padding": padding if padding is not None else [0] * d, "dilation": dilation or [1] * d, "groups": groups}

    shapes = [
        ("plain1", (2, 3, 6), (4, 3, 3), {}),
        ("plain2", (2, 2, 4, 5), (3, 2, 3, 2), {}),
        ("plain3", (1, 2, 3, 3, 4), (2, 2, 2, 1, 3), {}),
        ("distinct1", (1, 2, 9), (3, 2, 3), {"stride": [3], "padding": [2], "dilation": [2]}),
        ("distinct2", (1, 2, 5, 7), (3, 2, 2, 3), {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2]}),
        ("distinct3", (1, 1, 4, 3, 5), (2, 1, 2, 3, 2), {"stride": [1, 2, 3], "padding": [0, 1, 1], "dilation": [2, 1, 1]}),
        ("remainder1", (1, 2, 8), (2, 2, 2), {"stride": [3]}),
        ("remainder2", (1, 2, 9), (2, 2, 2), {"stride": [3]}),
        ("remainder3", (1, 1, 11), (1, 1, 4), {"stride": [4]}),
        ("sides", (1, 2, 3, 4), (2, 2, 2, 3), {"padding": [0, 2, 3, 1]}),
        ("same1", (1, 2, 5), (2, 2, 4), {"padding": "same"}),
        ("same2", (1, 2, 4, 3), (2, 2, 2, 3), {"padding": "same", "dilation": [1, 2]}),
        ("valid", (1, 2, 4, 3), (2, 2, 2, 3), {"padding": "valid", "stride": [2, 1]}),
        ("groups", (1, 4, 4, 3), (6, 2, 2, 2), {"groups": 2, "stride": [1, 2], "padding": [1, 0]}),
        ("depthwise", (1, 3, 3, 4), (6, 1, 2, 3), {"groups": 3, "padding": [1, 1]}),
        ("channels", (2, 6, 3, 3), (7, 6, 2, 2), {"padding": [1, 1]}),
        ("pointwise", (1, 5, 5, 7), (6, 5, 1, 1), {}),
        ("whole", (2, 2, 3, 2), (3, 2, 3, 2), {}),
        ("cubic", (3, 3, 3, 3), (3, 3, 3, 3), {"padding": [1, 1]}),
        ("no_images", (0, 2, 4), (3, 2, 2), {}),
    ]
    for name, x, w, o in shapes:
        o = options(len(x) - 2, **o)
        for b in [False, True]:
            f = lambda x_, w_, b_=None: slide(x_, w_, b_, o)
            # PyTorch refuses second derivatives without images.
            case(fam, "conv", name + "_b" * b, f, lambda: [q(*x), q(*w)] + [q(w[0])] * b, o, order=1 if 0 in x else 2)
        y = slide(torch.zeros(x), torch.zeros(w), None, o).shape
        def weight(x_, y_):
            w_ = torch.zeros(w, requires_grad=True)
            return torch.autograd.grad(slide(x_, w_, None, o), w_, y_, create_graph=True)[0]
        if 0 not in x:
            case(fam, "conv_weight", name, weight, lambda: [q(*x), q(*y)], {**o, "kernel": list(w[2:])})
    border = torch.tensor([[[inf, 1.0, 2.0, nan]]])
    case(fam, "conv", "special", lambda x, w: F.conv1d(x, w, padding=1), lambda: [border, q(1, 1, 3)], options(1, padding=[1]), order=1)

    for name, x, w, o in [
        ("plain1", (2, 3, 4), (3, 2, 3), {}),
        ("plain2", (1, 2, 3, 4), (2, 3, 2, 3), {}),
        ("plain3", (1, 2, 2, 1, 3), (2, 2, 2, 3, 1), {}),
        ("stride1", (1, 2, 3), (2, 2, 2), {"stride": [3]}),
        ("output_padding1", (1, 2, 3), (2, 2, 2), {"stride": [3], "output_padding": [1]}),
        ("output_padding2", (1, 2, 3), (2, 2, 2), {"stride": [3], "output_padding": [2], "padding": [1]}),
        ("by_dilation", (1, 1, 3), (1, 2, 2), {"dilation": [3], "output_padding": [2], "padding": [1]}),
        ("distinct2", (1, 2, 3, 2), (2, 3, 2, 3), {"stride": [2, 3], "padding": [1, 2], "dilation": [1, 2], "output_padding": [0, 1]}),
        ("distinct3", (1, 1, 2, 3, 2), (1, 2, 2, 1, 3), {"stride": [1, 2, 3], "padding": [0, 1, 1], "dilation": [2, 1, 1], "output_padding": [1, 0, 2]}),
        ("groups", (1, 6, 2, 3), (6, 2, 2, 2), {"groups": 2, "stride": [1, 2], "output_padding": [0, 1]}),
        ("depthwise", (1, 3, 2, 3), (3, 2, 2, 3), {"groups": 3}),
        ("channels", (2, 7, 3, 2), (7, 6, 2, 2), {"stride": [2, 2]}),
        ("pointwise", (1, 6, 5, 7), (6, 5, 1, 1), {}),
        ("no_images", (0, 2, 4), (2, 3, 2), {}),
    ]:
        d = len(x) - 2
        o = {"output_padding": [0] * d, **options(d, **{k: v for k, v in o.items() if k != "output_padding"}), **{k: v for k, v in o.items() if k == "output_padding"}}
        for b in [False, True]:
            f = lambda x_, w_, b_=None: CONV_TRANSPOSE[d](x_, w_, b_, o["stride"], o["padding"], o["output_padding"], o["groups"], o["dilation"])
            case(fam, "conv_input", name + "_b" * b, f, lambda: [q(*x), q(*w)] + [q(w[1] * o["groups"])] * b, o, order=1 if 0 in x else 2)


# --- pooling and norms of channels --------------------------------------------------------------------------------------

def pooling():
    fam = "pooling"
    nth = lambda name, d: getattr(F, f"{name}{d}d")
    for name, x, kernel, o in [
        ("plain1", (2, 2, 6), [2], {}),
        ("plain2", (1, 2, 4, 6), [2, 3], {}),
        ("plain3", (1, 1, 4, 3, 4), [2, 3, 2], {}),
        ("overlap", (1, 2, 7), [3], {"stride": [1], "padding": [1]}),
        ("gaps", (1, 2, 9), [2], {"stride": [3]}),
        ("rest", (1, 1, 5, 6), [3, 2], {"stride": [2, 3], "padding": [1, 0]}),
        ("ceil1", (1, 2, 6), [3], {"stride": [2], "ceil": True}),
        ("ceil_left_out", (1, 1, 5), [2], {"stride": [3], "padding": [1], "ceil": True}),
        ("ceil2", (1, 1, 5, 4), [2, 3], {"stride": [2, 2], "padding": [1, 1], "ceil": True}),
        ("ceil3", (1, 1, 3, 2, 5), [2, 1, 2], {"stride": [2, 1, 3], "padding": [0, 0, 1], "ceil": True}),
        ("dilation", (1, 1, 6, 7), [2, 3], {"stride": [1, 2], "padding": [1, 0], "dilation": [2, 3]}),
    ]:
        d = len(kernel)
        o = {"kernel": kernel, "stride": None, "padding": [0] * d, "dilation": [1] * d, "ceil": False, **o}
        mp = lambda x_: nth("max_pool", d)(x_, kernel, o["stride"], o["padding"], o["dilation"], o["ceil"], return_indices=True)
        case(fam, "max_pool", name, lambda x_: tuple(mp(x_)), lambda: [distinct(*x)], o)
        if o["dilation"] == [1] * d:
            for include in [True, False]:
                ap = lambda x_: nth("avg_pool", d)(x_, kernel, o["stride"], o["padding"], o["ceil"], include)
                case(fam, "avg_pool", f"{name}_{'with' if include else 'without'}", ap, lambda: [q(*x)], {**o, "include": include})
    ties = torch.tensor([[[1.0, 3.0, 3.0, 0.0], [nan, 9.0, nan, 1.0], [-inf, -inf, -inf, inf]]])
    o = {"kernel": [2], "stride": [1], "padding": [1], "dilation": [1], "ceil": False}
    case(fam, "max_pool", "special", lambda x: tuple(F.max_pool1d(x, 2, 1, 1, return_indices=True)), [ties], o, order=1)
    case(fam, "avg_pool", "special", lambda x: F.avg_pool1d(x, 2, 1, 1), [ties], {**o, "include": True}, order=1)
    for name, x, out in [("even1", (2, 2, 6), [3]), ("odd1", (1, 2, 7), [3]), ("more1", (1, 2, 3), [5]), ("plane", (1, 2, 5, 4), [2, 3]), ("one", (2, 2, 3, 4), [1, 1]), ("volume", (1, 1, 3, 2, 4), [2, 1, 3])]:
        d = len(out)
        case(fam, "adaptive_avg_pool", name, lambda x_: nth("adaptive_avg_pool", d)(x_, out), lambda: [q(*x)], {"output": out})
        case(fam, "adaptive_max_pool", name, lambda x_: nth("adaptive_max_pool", d)(x_, out), lambda: [distinct(*x)], {"output": out})

    fam = "channels"
    for name, x in [("plain", (3, 2)), ("line", (2, 3, 4)), ("plane", (2, 2, 3, 2)), ("volume", (1, 2, 2, 1, 3)), ("cubic", (3, 3, 3, 3))]:
        c = x[1]
        for w in [False, True]:
            for b in [False, True]:
                o = {"eps": 1e-5 if w else 1e-3, "weight": w, "bias": b}
                tag = f"{name}{'_w' if w else ''}{'_b' if b else ''}"
                # PyTorch's own second derivative refuses a bias without a weight.
                by = lambda p: (p[0] if w else None, p[-1] if b else None)
                order = 2 if w == b else 1
                make = lambda: [distinct(*x)] + [q(c)] * w + [q(c)] * b
                case(fam, "batch_norm", tag, lambda x_, *p: F.batch_norm(x_, None, None, *by(p), True, 0.1, o["eps"]), make, o, order=order)
                run = lambda x_, m, v, *p: (x_ - m.reshape(c, *[1] * (x_.dim() - 2))) / (v.reshape(c, *[1] * (x_.dim() - 2)) + o["eps"]).sqrt() * (p[0].reshape(c, *[1] * (x_.dim() - 2)) if w else 1.0) + (p[-1].reshape(c, *[1] * (x_.dim() - 2)) if b else 0.0)
                case(fam, "batch_norm_with", tag, run, lambda: [q(*x), q(c), pos(c)] + [q(c)] * w + [q(c)] * b, o)
                if len(x) > 2:
                    case(fam, "group_norm", "each_" + tag, lambda x_, *p: F.instance_norm(x_, None, None, *by(p), True, 0.1, o["eps"]), make, {**o, "groups": c}, order=order)
                    case(fam, "group_norm", "all_" + tag, lambda x_, *p: F.group_norm(x_, 1, *by(p), o["eps"]), make, {**o, "groups": 1}, order=order)
    case(fam, "group_norm", "pairs", lambda x, w, b: F.group_norm(x, 2, w, b, 1e-5), lambda: [distinct(2, 4, 3), q(4), q(4)], {"eps": 1e-5, "weight": True, "bias": True, "groups": 2})


# --- windows as columns -------------------------------------------------------------------------------------------------

def columns():
    fam = "columns"
    for name, x, kernel, o in [
        ("plain", (2, 2, 4, 5), [2, 3], {}),
        ("beside", (1, 3, 4, 6), [2, 2], {"stride": [2, 2]}),
        ("mixed", (1, 2, 5, 6), [2, 3], {"dilation": [2, 1], "padding": [1, 2], "stride": [1, 2]}),
        ("gaps", (1, 1, 7, 5), [2, 2], {"stride": [3, 3]}),
        ("one", (2, 3, 2, 2), [1, 1], {}),
    ]:
        o = {"kernel": kernel, "dilation": [1, 1], "padding": [0, 0], "stride": [1, 1], **o}
        by = {k: o[k] for k in ["dilation", "padding", "stride"]}
        case(fam, "unfold", name, lambda x_: F.unfold(x_, kernel, **by), lambda: [q(*x)], o)
        shape = F.unfold(torch.zeros(x), kernel, **by).shape
        case(fam, "fold", name, lambda y: F.fold(y, x[2:], kernel, **by), lambda: [q(*shape)], {**o, "output": list(x[2:])})
    # PyTorch has two axes: a line is a plane of height 1.
    o = {"kernel": [3], "dilation": [2], "padding": [1], "stride": [2]}
    by = {"kernel_size": (1, 3), "dilation": (1, 2), "padding": (0, 1), "stride": (1, 2)}
    case(fam, "unfold", "line", lambda x: F.unfold(x.unsqueeze(2), **by), lambda: [q(2, 2, 9)], o)
    case(fam, "fold", "line", lambda y: F.fold(y, (1, 9), **by).squeeze(2), lambda: [q(2, 6, 4)], {**o, "output": [9]})


# --- resampling ---------------------------------------------------------------------------------------------------------

LINES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def interpolated(x, mode, to, align=False, antialias=False, recompute=False):
    """F.interpolate by this crate's names of modes; `to` are extents, or factors where they are floats."""
    d = x.dim() - 2
    o = {"size" if isinstance(to[0], int) else "scale_factor": to if len(to) > 1 else to * d}
    if mode in ("linear", "cubic"):
        o["align_corners"] = align
        mode = LINES[d] if mode == "linear" else "bicubic"
    if antialias:
        o["antialias"] = True
    if recompute:
        o["recompute_scale_factor"] = True
    return F.interpolate(x, mode=mode, **o)


def resampling():
    fam = "resampling"

    def one(name, x, mode, to, **o):
        options = {"mode": mode, "size" if isinstance(to[0], int) else "factor": to, **o}
        case(fam, "interpolate", name, lambda x_: interpolated(x_, mode, to, **o), lambda: [q(*x)], options)

    for mode in ["nearest", "nearest-exact", "linear", "area", "cubic"]:
        sides = [("line", (2, 1, 4), [7]), ("plane", (1, 2, 5, 4), [3, 7]), ("volume", (1, 1, 2, 3, 2), [3, 2, 4])]
        for name, x, to in [s for s in sides if mode != "cubic" or len(s[1]) == 4]:
            one(f"{mode}_{name}", x, mode, to)
        one(f"{mode}_factor", (1, 1, 5, 6), mode, [2.6, 0.7])
        one(f"{mode}_one_factor", (1, 1, 3, 3), mode, [1.3])
        one(f"{mode}_recomputed", (1, 1, 3, 5), mode, [1.5], recompute=True)
    middle = lambda: [t(1.0, inf, 2.0).reshape(1, 1, 3)]
    case(fam, "interpolate", "special", lambda x: interpolated(x, "linear", [5], True), middle, {"mode": "linear", "size": [5], "align": True}, order=1)
    one("nearest_rounding", (1, 1, 26), "nearest", [22])
    one("nearest-exact_rounding", (1, 1, 2), "nearest-exact", [41])
    for mode in ["linear", "cubic"]:
        for name, x, to in [("plane", (1, 2, 5, 4), [3, 7]), ("one", (1, 1, 3, 1), [1, 4]), ("factor", (1, 1, 8, 3), [0.4, 1.5])]:
            one(f"{mode}_aligned_{name}", x, mode, to, align=True)
            one(f"{mode}_wide_{name}", x, mode, to, antialias=True)
        one(f"{mode}_wide_aligned", (1, 1, 8, 4), mode, [3, 6], align=True, antialias=True)
    one("linear_aligned_volume", (1, 1, 2, 3, 2), "linear", [3, 2, 4], align=True)

    def line(x, axis, m, mode, factor, align, antialias):
        """One axis, as the width of images of height 1."""
        x = x.movedim(axis, -1)
        to = [1, m] if factor is None else [1.0, factor]
        flat = x.reshape(1, -1, 1, x.shape[-1])
        flat = interpolated(flat, mode, to, align, antialias)
        return flat.reshape(*x.shape[:-1], m).movedim(-1, axis)

    for name, x, axis, m, mode, factor, align, antialias in [
        ("nearest", (2, 5), 1, 3, "nearest", None, False, False),
        ("nearest_exact", (5, 2), 0, 8, "nearest-exact", 1.6, False, False),
        ("linear", (2, 3, 2), 1, 7, "linear", None, False, False),
        ("linear_aligned", (2, 3, 2), 1, 7, "linear", None, True, False),
        ("cubic", (4,), 0, 9, "cubic", None, False, False),
        ("cubic_factor", (4, 3), 0, 9, "cubic", 2.3, False, False),
        ("wide", (2, 9), 1, 4, "cubic", None, False, True),
        ("wide_linear", (9, 2), 0, 4, "linear", 0.5, False, True),
        ("area", (2, 7), 1, 3, "area", None, False, False),
    ]:
        o = {"axis": axis, "to": m, "mode": mode, "factor": factor, "align": align, "antialias": antialias}
        case(fam, "resample", name, lambda x_: line(x_, axis, m, mode, factor, align, antialias), lambda: [q(*x)], o)


def positions():
    fam = "positions"
    for mode in ["linear", "nearest", "cubic"]:
        for padding in ["zeros", "border", "reflection"]:
            for align in [False, True]:
                o = {"mode": mode, "padding": padding, "align": align}
                by = {"mode": {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode), "padding_mode": padding, "align_corners": align}
                f = lambda x, g: F.grid_sample(x, g, **by)
                name = f"{mode}_{padding}{'_aligned' if align else ''}"
                case(fam, "grid_sample", name, f, lambda: [q(2, 2, 3, 5), q(2, 2, 3, 2, scale=0.8)], o)
                if mode != "cubic":
                    case(fam, "grid_sample", name + "_volume", f, lambda: [q(1, 2, 2, 3, 4), q(1, 2, 1, 2, 3, scale=0.8)], o)
    for align in [False, True]:
        tag = "_aligned" if align else ""
        for name, output in [("plane", [3, 4]), ("volume", [2, 1, 3])]:
            d = len(output)
            f = lambda theta: F.affine_grid(theta, [2, 1, *output], align_corners=align)
            case(fam, "affine_grid", name + tag, f, lambda: [q(2, d, d + 1)], {"output": output, "align": align})
    for name, x, size, alpha, beta, k in [
        ("odd", (2, 5, 3), 3, 1e-4, 0.75, 1.0),
        ("even", (1, 6, 2, 2), 4, 0.5, 0.5, 2.0),
        ("few", (1, 2, 3), 5, 1.5, 1.5, 0.5),
        ("volume", (1, 3, 2, 1, 2), 2, 1.0, 0.75, 1.0),
    ]:
        o = {"size": size, "alpha": alpha, "beta": beta, "k": k}
        case(fam, "local_response_norm", name, lambda x_: F.local_response_norm(x_, size, alpha, beta, k), lambda: [q(*x)], o)


def main():
    elementwise(), binary(), reductions(), shapes(), indices(), products(), einsum(), norms(), losses(), attention(), convolutions(), pooling()
    columns(), resampling(), positions()
    OUT.mkdir(parents=True, exist_ok=True)
    total = 0
    for family, cases in FAMILIES.items():
        names = [(c["op"], c["case"]) for c in cases]
        assert len(set(names)) == len(names), [n for n in names if names.count(n) > 1]
        body = json.dumps({"torch": torch.__version__.split("+")[0], "cases": [None]})
        lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
        path = OUT / f"{family}.json"
        path.write_text(body.replace("[null]", "[\n" + lines + "\n]") + "\n")
        total += path.stat().st_size
        print(f"{family}: {len(cases)} cases, {path.stat().st_size} bytes")
    print(f"{sum(map(len, FAMILIES.values()))} cases, {total} bytes")


if __name__ == "__main__":
    main()
