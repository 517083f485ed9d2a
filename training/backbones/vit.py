"""The vision transformers that InsightFace's arcface_torch trains (ViT: arXiv 2010.11929).

144 patches of 9 x 9 pixels, no class token; the tokens side by side go through two linear layers with batch norm. Layer
names are arcface_torch's. What is left to chance in training (tokens hidden, branches skipped) is drawn outside the
network, so that a step is a function of its inputs: repeated, resumed or spread over ranks, it is the same.
"""

from __future__ import annotations

from functools import partial

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from training.backbones.blocks import Rng, dense, recompute_activations
from training.backbones.spec import Graph, Spec

PATCH = 9  # pixels
TOKENS = (112 // PATCH) ** 2
STD = 0.02  # of the first weights


class Attention(nn.Cell):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2) of (B, N, C)."""

    def __init__(self, rng: Rng, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = dense(rng, width, 3 * width, bias=False, std=STD)
        self.proj = dense(rng, width, width, std=STD)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns (B, N, C)."""
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.heads, width // self.heads).transpose(2, 0, 3, 1, 4)
        weights = ops.softmax(ops.matmul(qkv[0], qkv[1].swapaxes(-2, -1)) * self.scale, -1)  # (B, heads, N, N)
        return self.proj(ops.matmul(weights, qkv[2]).swapaxes(1, 2).reshape(images, tokens, width))

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        width = self.qkv.weight.shape[1]
        swapped = (False, True, False)  # of the keys the last two axes, for the product with the queries
        parts = []
        for weight, swap in zip(np.split(self.qkv.weight.asnumpy(), 3), swapped, strict=True):
            part = graph.add("MatMul", x, graph.array(weight.T))  # (B, N, C)
            part = graph.add("Reshape", part, graph.shape(0, TOKENS, self.heads, width // self.heads))
            order = (0, 2, 3, 1) if swap else (0, 2, 1, 3)
            parts.append(graph.add("Transpose", part, perm=order))  # (B, heads, N, C / heads)
        products = graph.add("Mul", graph.add("MatMul", parts[0], parts[1]), graph.array(np.float32(self.scale)))
        out = graph.add("MatMul", graph.add("Softmax", products, axis=-1), parts[2])  # (B, heads, N, C / heads)
        out = graph.add("Reshape", graph.add("Transpose", out, perm=(0, 2, 1, 3)), graph.shape(0, TOKENS, width))
        return graph.chain(out, self.proj)


class Mlp(nn.Cell):
    """Two linear layers with ReLU6 between, four times wider inside."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        self.fc1 = dense(rng, width, 4 * width, std=STD)
        self.fc2 = dense(rng, 4 * width, width, std=STD)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns (B, N, C)."""
        return self.fc2(ops.relu6(self.fc1(x)))

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        bounds = [graph.array(np.float32(bound)) for bound in (0, 6)]
        return graph.chain(graph.add("Clip", graph.chain(x, self.fc1), *bounds), self.fc2)


class Block(nn.Cell):
    """Attention and MLP, each after a layer norm and with a shortcut.

    Args:
        rng: for first values.
        width: C.
        heads: of the attention.
    """

    def __init__(self, rng: Rng, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm((width,), epsilon=1e-5)
        self.norm2 = nn.LayerNorm((width,), epsilon=1e-5)
        self.attn = Attention(rng, width, heads)
        self.mlp = Mlp(rng, width)

    def construct(self, x: ms.Tensor, branches: ms.Tensor | None = None) -> ms.Tensor:
        """Returns (B, N, C); branches (B, 2) are factors of the two branches, None for 1."""
        attended = self.attn(self.norm1(x))
        if branches is not None:
            attended = attended * branches[:, 0].reshape(-1, 1, 1).astype(x.dtype)
        x = x + attended
        raised = self.mlp(self.norm2(x))
        if branches is not None:
            raised = raised * branches[:, 1].reshape(-1, 1, 1).astype(x.dtype)
        return x + raised

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        x = graph.add("Add", x, graph.chain(x, self.norm1, self.attn))
        return graph.add("Add", x, graph.chain(x, self.norm2, self.mlp))


class PatchEmbed(nn.Cell):
    """The patches' projections: (B, 3, 112, 112) to (B, N, C)."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        bound = 1 / np.sqrt(3 * PATCH * PATCH)  # PyTorch's first values of a convolution
        weight = rng.uniform(-bound, bound, (width, 3, PATCH, PATCH)).astype(np.float32)
        bias = rng.uniform(-bound, bound, width).astype(np.float32)
        self.proj = nn.Conv2d(
            3,
            width,
            PATCH,
            stride=PATCH,
            pad_mode="pad",
            has_bias=True,
            weight_init=ms.Tensor(weight),
            bias_init=ms.Tensor(bias),
        )

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns (B, N, C)."""
        x = self.proj(x)
        return x.reshape(x.shape[0], x.shape[1], -1).swapaxes(1, 2)

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        x = graph.add("Reshape", graph.chain(x, self.proj), graph.shape(0, 0, -1))
        return graph.add("Transpose", x, perm=(0, 2, 1))


class VisionTransformer(nn.Cell):
    """(B, 3, 112, 112) float32 to (B, embedding_size).

    Args:
        width: components of a token.
        depth: blocks.
        heads: of the attention.
        embedding_size: components.
        seed: of the first values.
        recompute: keeps no activations inside the blocks.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int = 8,
        embedding_size: int = 512,
        seed: int = 0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.patch_embed = PatchEmbed(rng, width)
        self.pos_embed = ms.Parameter(
            ms.Tensor(rng.normal(0, STD, (1, TOKENS, width)).astype(np.float32)), name="pos_embed"
        )
        self.blocks = nn.CellList([Block(rng, width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm((width,), epsilon=1e-5)
        self.feature = nn.SequentialCell(
            dense(rng, width * TOKENS, width, bias=False, std=STD),
            nn.BatchNorm1d(width, eps=2e-5, momentum=0.9),
            dense(rng, width, embedding_size, bias=False, std=STD),
            nn.BatchNorm1d(embedding_size, eps=2e-5, momentum=0.9),
        )
        self.mask_token = ms.Parameter(
            ms.Tensor(rng.normal(0, STD, (1, 1, width)).astype(np.float32)), name="mask_token"
        )
        if recompute:
            for block in self.blocks:
                recompute_activations(block)

    def draw(self, rng: Rng, images: int, drop_path: float, mask_ratio: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns what chance decides in a training step; inputs of construct.

        Args:
            rng: decides.
            images: their number.
            drop_path: probability that an image skips a branch of the last block, growing linearly from 0 at the first
                (stochastic depth, arXiv 1603.09382).
            mask_ratio: part of the tokens that an image hides.

        Returns:
            branches (images, depth, 2) float32, 0 where a branch is skipped, else 1 / (1 - probability); shown (images,
            N') int32, the tokens that the blocks see, ascending, N' = int(144 (1 - mask_ratio)).
        """
        stays = 1 - np.linspace(0, drop_path, len(self.blocks))[:, None]  # (depth, 1)
        branches = (rng.random((images, len(self.blocks), 2)) < stays) / stays
        order = rng.permuted(np.tile(np.arange(TOKENS, dtype=np.int32), (images, 1)), axis=1)
        return branches.astype(np.float32), np.sort(order[:, : int(TOKENS * (1 - mask_ratio))], axis=1)

    def construct(self, x: ms.Tensor, branches: ms.Tensor | None = None, shown: ms.Tensor | None = None) -> ms.Tensor:
        """Returns the embeddings, not normalised; in training with what draw() gives for the images of x.

        Tokens that are not shown pass the blocks by; the mask token stands in their places behind the last norm.
        """
        x = self.patch_embed(x) + self.pos_embed
        places = None
        if shown is not None and shown.shape[1] < TOKENS:
            places = ops.equal(shown.expand_dims(2), ops.arange(0, TOKENS)).astype(x.dtype)  # (B, N', N) of 0 and 1
            x = ops.matmul(places, x)
        for i, block in enumerate(self.blocks):
            x = block(x) if branches is None else block(x, branches[:, i])
        x = self.norm(x)
        if places is not None:
            hidden = 1 - places.sum(axis=1).expand_dims(2)  # (B, N, 1)
            x = ops.matmul(places.swapaxes(1, 2), x) + hidden * self.mask_token
        return self.feature(x.reshape(x.shape[0], -1))

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        x = graph.add("Add", graph.chain(x, self.patch_embed), graph.array(self.pos_embed))
        x = graph.add("Flatten", graph.chain(x, *self.blocks, self.norm), axis=1)
        return graph.chain(x, self.feature)


def _spec(width: int, depth: int, multiply_adds: float, fixed: int) -> Spec:
    build = partial(VisionTransformer, width, depth, 8)
    return Spec(build=build, last_norm="feature.3", multiply_adds=multiply_adds, values=(fixed, width + 4))


SPECS = {
    "vit_t": _spec(256, 12, multiply_adds=1.5, fixed=19_006_208),
    "vit_s": _spec(512, 12, multiply_adds=5.7, fixed=75_761_152),
    "vit_b": _spec(512, 24, multiply_adds=11.4, fixed=113_571_328),
    "vit_l": _spec(768, 24, multiply_adds=25.3, fixed=255_291_648),
}
