"""The injector: a network that reads a statement's hidden states once, and says which weight update it asks for.

One forward pass of the frozen model over  start token, question, answer  gives, of every token t,

    e_t       features: the residual stream at several depths, or what attention gives there,
              layer-normed and concatenated                                                    [depths * d]
    m_t^l     what the down projection of edited layer l reads                                 [f]

From these, with s_t = Mixer(W e_t + position + answer flag):

    alpha^l = softmax over the question's tokens of (w_l . s_t)      where the subject ends
    k_l = m_t^l at the t of the largest alpha_t^l                    the layer's own key for it
    a_l = C_l^-1 k_l / (rho f + k_l . C_l^-1 k_l)                    fires at k_l, hardly on ordinary text
    v_l = N_l softplus(w'_l . c) H_l c / |H_l c|                     what the projection should add there

with c a code of the answer's features and of s, pooled over question and answer, N_l the mean length of what the
projection gives on ordinary text, and dW_l = v_l a_l^T. A bound on the length would be a place where it has no gradient
left. Only alpha and v are learned: the key is the layer's own representation of the fact's subject, found without being
marked, whitened under the covariance C of ordinary text (ROME, Meng et al. 2202.05262, section 3.1). Networks that
predict edits go back to MEND (Mitchell et al. 2110.11309); this one predicts values, not gradients.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..capture import capturing, read_until
from ..errors import NPTError
from ..files import read_tensors, write_tensors
from ..kv_cache import cache_of
from ..statistics import Whitening
from ..structure import attention_of, decoder_layers, mlp_of, projection
from ..text.tokens import batch, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
Reads = Literal["residual", "attention"]
INJECTOR_FILE = "injector.safetensors"
"""The file in a workspace. Without it, an injector that comes with the package serves the model it was trained for."""
PACKAGED = Path(__file__).parents[1] / "injectors"
MASKED = -1e4
"""The score of a token that must not be chosen."""


@dataclass(frozen=True)
class InjectorConfig:
    """The shape of an injector; `fitting` makes one for a model."""

    layers: tuple[int, ...]
    """layers whose down projection is edited"""
    depths: tuple[int, ...]
    """layers after which the residual stream is read as features, or whose attention is read; -1 for token
    embeddings"""
    norms: tuple[float, ...]
    """mean norm of what each edited projection gives on ordinary text"""
    d_model: int
    d_ffn: int
    width: int = 256
    heads: int = 4
    mixers: int = 2
    pools: int = 4
    straight: int = 256
    """rank of the linear path from an answer to its values"""
    hidden: int = 256
    max_length: int = 64
    """longest statement, in tokens, with the start token"""
    rho: float = 0.5
    """strength of the ridge that edits are solved under, alone or together, in units of d_ffn, which is what
    k . C^-1 k is at an ordinary token on average"""
    reads: Reads = "residual"
    """what features are: the residual stream, or attention's output, from which dynamic mode makes its updates"""

    def __post_init__(self) -> None:
        sizes = ("d_model", "d_ffn", "width", "heads", "mixers", "pools", "straight", "hidden", "max_length")
        if bad := [s for s in sizes if getattr(self, s) < 1]:
            raise NPTError(f"an injector's {bad[0]} must be at least 1, not {getattr(self, bad[0])}")
        if not self.layers or not self.depths or min(self.layers) < 0 or min(self.depths) < -1:
            raise NPTError("an injector needs layers to edit and depths to read")
        if self.reads not in get_args(Reads) or (self.reads == "attention" and min(self.depths) < 0):
            raise NPTError(f"an injector reads {' or '.join(get_args(Reads))}, and embeddings have no attention")
        if self.width % self.heads or self.pools % 2:
            raise NPTError("an injector's width must be a multiple of its heads, and its pools even")
        if len(self.norms) != len(self.layers) or not min(*self.norms, self.rho) > 0:
            raise NPTError("an injector's rho and one norm for each of its layers must be above 0")

    @property
    def ridge(self) -> float:
        return self.rho * self.d_ffn

    @classmethod
    @torch.no_grad()
    def fitting(cls, model: PreTrainedModel, text: Tensor, reads: Reads = "residual", **options: Any) -> InjectorConfig:
        """For a model of any depth and width: six layers from a tenth of its depth on, where a subject's last token
        says the same in every context, and six depths to read. On 30 layers: 3 to 8, and -1, 6, 12, 18, 24, 29 (of
        attention 0 in place of -1; layers without a softmax attention are left out).

        `text` (N, T) is ordinary text; each row begins with the start token.
        """
        layers = decoder_layers(model)
        n, down = len(layers), projection(mlp_of(layers[0]), "down")
        edited = sorted({min(n - 1, round(n / 10) + i) for i in range(max(1, min(6, round(n / 5))))})
        first = -1 if reads == "residual" else 0
        depths = sorted({first, *(min(n - 1, round(n * i / 5)) for i in range(1, 6))})
        if reads == "attention":
            depths = [i for i in depths if attention_of(layers[i]) is not None]
        norms: dict[int, float] = {}

        def measure(i: int, z: Tensor, output: Tensor) -> None:
            norms[i] = output[:, 1:].float().norm(dim=-1).mean().item()

        read_until(model, {i: projection(mlp_of(layers[i]), "down") for i in edited}, measure, input_ids=text)
        fitted: dict[str, Any] = {"layers": tuple(edited), "depths": tuple(depths), "reads": reads}
        fitted["norms"] = tuple(float(f"{norms[i]:.4g}") for i in edited)  # the same on another machine
        fitted |= {"d_model": down.out_features, "d_ffn": down.in_features}
        return cls(**{**fitted, **options})


class Reading(NamedTuple):
    """What one forward pass over n statements of up to T tokens gives; padded on the right."""

    statement: Tensor
    """[n, T] bool: the statement's own tokens, without the start token"""
    answer: Tensor
    """[n, T] bool: those of the answer"""
    features: Tensor
    """e [n, T, depths * d]"""
    keys: Tensor
    """m [n, L, T, f]"""
    cache: Any
    """what attention keeps of these tokens"""


class Subject(NamedTuple):
    """Where a statement's subject stands, in tokens counted with the start token."""

    first: int
    last: int
    given: bool
    """whether whoever states the fact gave it; otherwise it was found by rule"""


class Proposal(NamedTuple):
    """Per statement and edited layer, the update dW = v a^T, and the key it answers to."""

    attention: Tensor
    """alpha [n, L, T]"""
    K: Tensor
    """[n, L, f]"""
    A: Tensor
    """[n, L, f]"""
    V: Tensor
    """[n, L, d]"""


def keys_at(alpha: Tensor, reading: Reading) -> Tensor:
    """k_l, what is read at the likeliest token [n, L, f]; gradients reach alpha as if it were the mean under alpha.

    A mean of several tokens' inputs would fire a little at each of them, and fully at none.
    """
    chosen = torch.nn.functional.one_hot(alpha.argmax(-1), alpha.shape[-1]).to(alpha)
    return torch.einsum("nlt,nltf->nlf", chosen + alpha - alpha.detach(), reading.keys)


def at_the_end(alpha: Tensor, subjects: Sequence[Subject | None]) -> Tensor:
    """Choices [n, L, T] moved to one token per statement: the one that its layers attend to most on average. It is the
    last token of a subject that was given, and of one found by rule if the layers' choice falls inside it: the network
    errs inside names now and then (*Sonic Drift* 2), and elsewhere it errs less than the rule."""
    chosen = alpha.mean(1).argmax(-1)
    for i, s in enumerate(subjects):
        if s is not None and (s.given or s.first <= chosen[i] <= s.last):
            chosen[i] = s.last
    moved = (chosen[:, None] != alpha.argmax(-1))[..., None]
    return torch.where(moved, torch.nn.functional.one_hot(chosen, alpha.shape[-1])[:, None].to(alpha), alpha)


def mean_answer(reading: Reading) -> Tensor:
    """The features of the answer's tokens, averaged [n, depths * d]: they call for its values almost linearly."""
    share = reading.answer / reading.answer.sum(1, keepdim=True)
    return torch.einsum("nt,ntd->nd", share.to(reading.features), reading.features)


def choose(scores: Tensor, among: Tensor) -> Tensor:
    """A softmax over the tokens, of those that may be chosen: scores [n, T, k], among [n, T] bool -> [n, T, k]."""
    return scores.masked_fill(~among[..., None], MASKED).softmax(1)


class Mixer(nn.Module):
    """One transformer block over a statement's tokens, every token seeing every other: s + Attn(n(s)), s + FF(n(s))."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, s: Tensor, seen: Tensor) -> Tensor:
        """s [n, T, r], seen [n, T] bool -> [n, T, r]."""
        qkv: Tensor = self.qkv(self.norm1(s))
        q, k, v = (torch.unflatten(t, -1, (self.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        s = s + self.out(mixed.transpose(1, 2).flatten(2))
        bent: Tensor = self.down(self.up(self.norm2(s)).relu())
        return s + bent


class Injector(nn.Module):
    """alpha and v of each edited layer from a Reading."""

    def __init__(self, config: InjectorConfig):
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # drawn by the CPU's generator, and moved to the model later
            self._make_layers(config)

    def _make_layers(self, config: InjectorConfig) -> None:
        r = config.width
        self.read = nn.Linear(len(config.depths) * config.d_model, r)
        self.position = nn.Parameter(torch.randn(config.max_length, r) * 0.02)
        self.answer = nn.Parameter(torch.zeros(r))
        self.mixers = nn.ModuleList([Mixer(r, config.heads) for _ in range(config.mixers)])
        self.norm = nn.LayerNorm(r)
        self.key = nn.Linear(r, len(config.layers))
        self.pool = nn.Linear(r, config.pools)
        self.straight = nn.Linear(len(config.depths) * config.d_model, config.straight)
        self.hidden = nn.Linear(config.pools * r, config.hidden)
        code = config.straight + config.hidden
        self.values = nn.ModuleList([nn.Linear(code, config.d_model) for _ in config.layers])
        self.size = nn.Linear(code, len(config.layers))
        nn.init.zeros_(self.size.weight)
        nn.init.zeros_(self.size.bias)

    def forward(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """alpha [n, L, T] and V [n, L, d]."""
        statement, answer = reading.statement, reading.answer
        s = self.read(reading.features) + self.position[: statement.shape[1]] + answer[..., None] * self.answer
        seen = statement.clone()
        seen[:, 0] = True  # the start token says nothing of the fact, but gives attention a place to rest
        for mixer in self.mixers:
            s = mixer(s, seen)
        s = self.norm(s)
        alpha = choose(self.key(s), statement & ~answer).transpose(1, 2)
        of_question, of_answer = self.pool(s).chunk(2, -1)  # each [n, T, pools / 2]
        weights = torch.cat([choose(of_question, statement & ~answer), choose(of_answer, answer)], -1)
        pooled = torch.einsum("ntp,ntr->npr", weights, s).flatten(1)
        bent = F.gelu(self.hidden(F.layer_norm(pooled, pooled.shape[-1:])))
        code = torch.cat([self.straight(mean_answer(reading)), bent], -1)
        direction = F.normalize(torch.stack([head(code) for head in self.values], 1), dim=-1)
        length = code.new_tensor(self.config.norms) * F.softplus(self.size(code))
        return alpha, length[..., None] * direction

    def propose(
        self,
        reading: Reading,
        whitening: Whitening,
        through: nn.Module | None = None,
        subjects: Sequence[Subject | None] | None = None,
    ) -> Proposal:
        """The updates that the statements ask for; `through` is this network as a training may have wrapped it,
        `subjects` those of the statements that are known."""
        alpha, V = (through or self)(reading)
        K = keys_at(alpha if subjects is None else at_the_end(alpha, subjects), reading)
        return Proposal(alpha, K, self.rows(K, whitening), V)

    def rows(self, K: Tensor, whitening: Whitening) -> Tensor:
        """a_l for each key: K [n, L, f] -> A [n, L, f]."""
        Z = torch.stack([whitening.solve(layer, "down", K[:, i]) for i, layer in enumerate(self.config.layers)], 1)
        return (Z / (self.config.ridge + (K * Z).sum(-1, keepdim=True))).to(K)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path, base: str, card: dict[str, Any]) -> None:
        """One safetensors file in half precision; `base` is the content hash of the model it was trained for, `card`
        says how."""
        state = {name: t.detach().half().contiguous() for name, t in self.state_dict().items()}
        config = dataclasses.asdict(self.config)
        write_tensors(path, state, {"kind": "injector", "format": FORMAT, "base": base, "config": config, "card": card})

    @classmethod
    def load(cls, path: Path, base: str) -> tuple[Injector, dict[str, Any]]:
        """The injector, in float32, and its card. Raises NPTError for a damaged file and for one of another base."""
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != "injector" or metadata.get("format") != FORMAT:
            raise NPTError(f"{path} is not an injector of format {FORMAT}")
        if metadata.get("base") != base:
            raise NPTError(
                f"{path} was trained for another base model ({str(metadata.get('base'))[:12]}, not {base[:12]}); train "
                "one with: npt train-injector"
            )
        try:
            given = metadata["config"]
            tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            injector = cls(InjectorConfig(**tuples))
        except (KeyError, TypeError, AttributeError) as e:
            raise NPTError(f"{path} is damaged: its configuration cannot be read ({e})") from None
        expected = injector.state_dict()
        if wrong := sorted(expected.keys() ^ tensors.keys()):
            raise NPTError(f"{path} is damaged: tensor {wrong[0]!r} is missing or unknown")
        for name, t in tensors.items():
            if t.shape != expected[name].shape or not torch.isfinite(t).all():
                raise NPTError(f"{path} is damaged: tensor {name!r} has the shape {tuple(t.shape)} or is not finite")
        injector.load_state_dict({name: t.float() for name, t in tensors.items()})
        return injector.eval(), dict(metadata.get("card") or {})


def find_injector(base: str, folder: Path | None) -> Injector | None:
    """The injector of a workspace's folder, else a packaged one for the base with this content hash, else None.

    Raises NPTError if the workspace's own file is damaged or belongs to another base.
    """
    if folder is not None and (folder / INJECTOR_FILE).exists():
        return Injector.load(folder / INJECTOR_FILE, base)[0]
    for file in sorted(PACKAGED.glob("*.safetensors")):
        if _base_of(file) == base:
            return Injector.load(file, base)[0]
    return None


def _base_of(file: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as f:
        base: str | None = json.loads((f.metadata() or {}).get("npt", "{}")).get("base")
    return base


Statement = tuple[Sequence[int], Sequence[int]]
"""The tokens of a question, or of the beginning of a sentence, and of its answer."""


def check_statements(
    tokenizer: PreTrainedTokenizerBase, config: InjectorConfig, statements: Sequence[Statement]
) -> None:
    """Raises NPTError for one that is longer than the injector was trained for, or that has no question or answer."""
    for question, answer in statements:
        if not question or not answer:
            raise NPTError("a statement needs a question, or the beginning of a sentence, and an answer")
        if (length := 1 + len(question) + len(answer)) > config.max_length:
            begins = str(tokenizer.decode(question))[:40]
            raise NPTError(
                f"the statement {begins!r}... is too long: it takes {length} tokens, and the injector was trained for "
                f"at most {config.max_length}; shorten it, or use --method consolidate"
            )


@torch.no_grad()
def read_statements(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: InjectorConfig,
    statements: Sequence[Statement],
) -> Reading:
    """One forward pass over statements, in the mode the model is in. Raises NPTError as `check_statements` does."""
    check_statements(tokenizer, config, statements)
    start = start_token(tokenizer)
    ids, mask = batch([[start, *q, *a] for q, a in statements], start, model.device)
    with _recording(model, config) as (hidden, read):
        cache = cache_of(model.base_model(input_ids=ids, attention_mask=mask, use_cache=True))
    statement = mask.bool()
    statement[:, 0] = False
    answers = torch.zeros_like(statement)
    for i, (q, a) in enumerate(statements):
        answers[i, 1 + len(q) : 1 + len(q) + len(a)] = True
    features = torch.cat([F.layer_norm(hidden[i].float(), (config.d_model,)) for i in config.depths], -1)
    return Reading(statement, answers, features, torch.stack([read[i].float() for i in config.layers], 1), cache)


@contextmanager
def _recording(model: PreTrainedModel, config: InjectorConfig) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """By layer: what features are made of, and what its down projection reads, of the pass made inside."""
    layers = decoder_layers(model)
    hidden: dict[int, Tensor] = {}
    read: dict[int, Tensor] = {}

    def source(i: int) -> nn.Module:
        if config.reads == "residual":
            return model.get_input_embeddings() if i < 0 else layers[i]
        if (attention := attention_of(layers[i])) is None:
            raise NPTError(f"the injector reads the attention of layer {i}, which has none")
        return attention

    def keep(at: tuple[str, int], given: Tensor, output: Tensor) -> None:
        what, i = at
        if what == "feature":
            hidden[i] = output
        else:
            read[i] = given

    modules: dict[tuple[str, int], nn.Module] = {("feature", i): source(i) for i in config.depths}
    modules |= {("down", i): projection(mlp_of(layers[i]), "down") for i in config.layers}
    with capturing(modules, keep):
        yield hidden, read
