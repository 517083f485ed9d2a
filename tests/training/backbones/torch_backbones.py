"""The backbones in PyTorch, from the papers, under arcface_torch's names: what tests and benchmarks compare with."""

from __future__ import annotations

import torch
from torch import nn

UNITS = {"r18": (2, 2, 2, 2), "r34": (3, 4, 6, 3), "r50": (3, 4, 14, 3), "r100": (3, 13, 30, 3), "r200": (6, 26, 60, 6)}
TOKENS, PATCH = 144, 9


class Unit(nn.Module):
    """A unit of an iresnet."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return shortcut + self.bn3(self.conv2(x))


class IResNet(nn.Module):
    """An iresnet."""

    def __init__(self, units, size=512):
        super().__init__()
        self.conv1, self.bn1, self.prelu = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        inputs = 64
        for stage, (outputs, count) in enumerate(zip((64, 128, 256, 512), units, strict=True), 1):
            layers = [Unit(inputs, outputs, 2), *[Unit(outputs, outputs, 1) for _ in range(count - 1)]]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            inputs = outputs
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 49, size)
        self.features = nn.BatchNorm1d(size)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.features(self.fc(x.flatten(1)))


class Layers(nn.Module):
    """Layers in a row under the name `layers`, with a shortcut around them if wanted."""

    def __init__(self, *layers, shortcut=False):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.shortcut = shortcut

    def forward(self, x):
        return x + self.layers(x) if self.shortcut else self.layers(x)


def conv(inputs, outputs, kernel, stride=1, padding=0, groups=1, slopes=True):
    """Returns convolution, batch norm and, if wanted, PReLU."""
    found = [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return Layers(*found, *([nn.PReLU(outputs)] if slopes else []))


def depthwise(inputs, outputs, stride, groups, shortcut=False):
    """Returns a bottleneck: 1x1 up, 3x3 by channel, 1x1 down."""
    up, across = conv(inputs, groups, 1), conv(groups, groups, 3, stride, 1, groups)
    return Layers(up, across, conv(groups, outputs, 1, slopes=False), shortcut=shortcut)


def row(channels, count, groups):
    """Returns bottlenecks with shortcuts."""
    return Layers(*[depthwise(channels, channels, 1, groups, shortcut=True) for _ in range(count)])


class MobileFaceNet(nn.Module):
    """MobileFaceNet of 0.45 G multiply-adds, or the narrow one."""

    def __init__(self, narrow=False, size=512):
        super().__init__()
        if narrow:
            layers = [conv(3, 32, 4, 4), conv(32, 64, 3, 2, 1), conv(64, 128, 3, 2, 1), row(128, 1, 128)]
            last, wide = 128, 256
        else:
            layers = [conv(3, 128, 3, 2, 1), conv(128, 128, 3, 1, 1, 64)]
            layers += [depthwise(128, 128, 2, 128), row(128, 4, 128)]
            layers += [depthwise(128, 256, 2, 256), row(256, 6, 256)]
            layers += [depthwise(256, 256, 2, 512), row(256, 2, 256)]
            last, wide = 256, 512
        self.layers = nn.ModuleList(layers)
        self.conv_sep = conv(last, wide, 1)
        weighs = conv(wide, wide, 7, groups=wide, slopes=False)
        self.features = Layers(weighs, nn.Flatten(), nn.Linear(wide, size, bias=False), nn.BatchNorm1d(size))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


class Attention(nn.Module):
    """Self-attention by PyTorch's own function."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(images, tokens, width))


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, branches):
        x = x + branches[:, 0, None, None] * self.attn(self.norm1(x))
        return x + branches[:, 1, None, None] * self.mlp.fc2(nn.functional.relu6(self.mlp.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """A vision transformer for faces."""

    def __init__(self, width, depth, heads=8, size=512):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, PATCH, PATCH)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, TOKENS, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * TOKENS, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, size, bias=False),
            nn.BatchNorm1d(size, eps=2e-5),
        )
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))

    def forward(self, x, branches=None, shown=None):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        if branches is None:
            branches = torch.ones(len(x), len(self.blocks), 2)
        if shown is None:
            shown = torch.arange(TOKENS).expand(len(x), -1)
        index = shown[:, :, None].expand(-1, -1, x.shape[2])
        seen = torch.gather(x, 1, index)
        for i, block in enumerate(self.blocks):
            seen = block(seen, branches[:, i])
        x = self.mask_token.expand(len(x), TOKENS, -1).scatter(1, index, self.norm(seen))
        return self.feature(x.flatten(1))


def create(name, size=512):
    """Returns a backbone by our name."""
    if name in UNITS:
        return IResNet(UNITS[name], size)
    if name.startswith("mbf"):
        return MobileFaceNet(name == "mbf_narrow", size)
    width, depth = {"vit_t": (256, 12), "vit_s": (512, 12), "vit_b": (512, 24), "vit_l": (768, 24)}[name]
    return VisionTransformer(width, depth, 8, size)


def shuffled(name, seed=0, size=512):
    """Returns a backbone in evaluation mode whose norms and slopes are not at their first values."""
    torch.manual_seed(seed)
    model = create(name, size)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
            nn.init.normal_(layer.running_mean, 0, 0.2)
        elif isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0, 0.5)
    return model.eval()
