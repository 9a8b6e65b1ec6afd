"""The twelve architectures of the zoo: tiny models of every usual kind, all of 45 to 165 thousand parameters."""

import torch
from torch import nn
from torch.nn.functional import relu, silu
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 128  # ASCII; 0 never occurs in text and serves as mask, padding and start
CLASSES = 10  # outputs of every classifier; a task with fewer classes leaves some idle


class Recurrent(nn.Module):
    """A language model around `nn.LSTM`."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 48)
        self.lstm = nn.LSTM(48, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, vocabulary)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(input_ids))[0])


class _Mixer(nn.Module):
    """A block with a gated linear recurrence: h_t = a h_(t-1) + (1 - a) x_t for each channel, gates from the input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.x_proj = nn.Linear(inner, inner, bias=False)
        self.A_log = nn.Parameter(torch.linspace(-2, 3, inner))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        x, gate = self.in_proj(self.norm(states)).chunk(2, dim=-1)
        length = x.shape[1]
        x = silu(self.conv1d(x.transpose(1, 2))[..., :length].transpose(1, 2))
        u = x * torch.sigmoid(self.x_proj(x))
        lag = torch.arange(length)[:, None] - torch.arange(length)
        decay = torch.sigmoid(self.A_log)
        kernel = decay ** lag.clamp(min=0)[..., None] * (lag >= 0)[..., None] * (1 - decay)
        mixed = torch.einsum("tsc,bsc->btc", kernel, u) + self.D * x
        return states + self.out_proj(mixed * silu(gate))


class GatedRecurrence(nn.Module):
    """A language model of gated linear recurrences, in the manner of Mamba."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 48)
        self.layers = nn.ModuleList(_Mixer(48, 80) for _ in range(4))
        self.norm_f = nn.LayerNorm(48)
        self.lm_head = nn.Linear(48, vocabulary, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states = self.embedding(input_ids)
        for layer in self.layers:
            states = layer(states)
        return self.lm_head(self.norm_f(states))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet(nn.Module):
    """Three stages of residual blocks with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 48)
        self.blocks = nn.ModuleList(_Residual(a, b, 1 + (a != b)) for a, b in zip(widths, widths[1:]))
        self.fc = nn.Linear(48, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = relu(self.bn1(self.stem(images[:, :, ::2, ::2])))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(4, outputs)
        self.time = nn.Linear(32, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = silu(self.norm(self.conv1(x)) + self.time(time)[:, :, None, None])
        return x + silu(self.conv2(x))


class UNet(nn.Module):
    """Predicts the noise in an image of 12 x 12 pixels, told how much there is."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Linear(8, 32)
        self.conv_in = nn.Conv2d(3, 16, 3, padding=1)
        self.down_blocks = nn.ModuleList([_Stage(16, 16), _Stage(16, 32)])
        self.mid_block = _Stage(32, 32)
        self.up_blocks = nn.ModuleList([_Stage(64, 32), _Stage(48, 16)])
        self.conv_out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        angles = time[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        told = silu(self.time_embed(torch.cat([angles.sin(), angles.cos()], 1)))
        x = self.conv_in(noisy)
        skips = []
        for block in self.down_blocks:
            x = block(x, told)
            skips.append(x)
            x = nn.functional.avg_pool2d(x, 2)
        x = self.mid_block(x, told)
        for block in self.up_blocks:
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, skips.pop()], 1), told)
        return self.conv_out(x)


class Perceptron(nn.Module):
    """A plain MLP on an image of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (192, 128, 96, 96)
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(96, CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images[:, :, ::3, ::3].flatten(1))


def _bert(vocabulary: int) -> nn.Module:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08}
    return BertForMaskedLM(BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **sizes, **plain))


def _llama(vocabulary: int) -> nn.Module:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, intermediate_size=128, max_position_embeddings=64, **sizes)
    config.initializer_range, config.bos_token_id, config.eos_token_id = 0.08, 0, 0
    return LlamaForCausalLM(config)


def _gpt2(vocabulary: int) -> nn.Module:
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=64, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config.bos_token_id = config.eos_token_id = 0
    return GPT2LMHeadModel(config)


def _t5(vocabulary: int) -> nn.Module:
    sizes = {"d_model": 48, "d_kv": 12, "num_heads": 4, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2}
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, **sizes, **special))


def _vit() -> nn.Module:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(**sizes, image_size=24, patch_size=8, num_labels=CLASSES, initializer_range=0.08)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return ViTForImageClassification(config)


def _moe(vocabulary: int) -> nn.Module:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=vocabulary, intermediate_size=64, num_local_experts=4, **sizes)
    config.initializer_range, config.max_position_embeddings = 0.08, 64
    config.bos_token_id = config.eos_token_id = 0
    return MixtralForCausalLM(config)


def _clip(vocabulary: int) -> nn.Module:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    text = sizes | {"vocab_size": vocabulary, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0}
    vision = sizes | {"image_size": 24, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


TEXT = {
    "bert": _bert,
    "llama": _llama,
    "gpt2": _gpt2,
    "t5": _t5,
    "lstm": Recurrent,
    "moe": _moe,
    "recurrence": GatedRecurrence,
}
IMAGE = {"vit": _vit, "resnet": ResNet, "mlp": Perceptron}
ARCHITECTURES = (*TEXT, *IMAGE, "unet", "clip")


def build(architecture: str, vocabulary: int = VOCABULARY) -> nn.Module:
    """An untrained model; torch's global generator draws its weights."""
    if architecture in TEXT:
        return TEXT[architecture](vocabulary)
    if architecture in IMAGE:
        return IMAGE[architecture]()
    return UNet() if architecture == "unet" else _clip(VOCABULARY)
