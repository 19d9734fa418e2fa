"""Training as docs/authors.md says that the authors' program does it: torch, transformers and PEFT, float64.

Nothing of it is the authors' code. PEFT's dropout modules are replaced by ones that apply a given mask.
"""

import copy

import numpy as np
import peft
import torch

RANK, ALPHA, DROPOUT = 16, 4, 0.1
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BETAS, DECAY, CLIP = (0.9, 0.98), 1e-3, 1.0
Key = tuple[str, str, int]  # linear, "A" or "B", layer


class MaskedDropout(torch.nn.Module):
    """Drops where `mask` (B, T, I) is False and divides the rest by 1 − p; without a mask drops nothing."""

    mask: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.mask is None else x * self.mask / (1 - DROPOUT)


class AuthorsProgram:
    """A small model with PEFT's adapters, and the loop over updates.

    Args:
      model: of transformers; it stays as it is.
      adapters: every A (R, in) and B (out, R) at the start.
    """

    def __init__(self, model: torch.nn.Module, adapters: dict[Key, np.ndarray]):
        self.model = copy.deepcopy(model).double().eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        decoder = self.model.model.language_model
        config = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(LINEARS), bias="none"
        )
        self.model.model.language_model = peft.get_peft_model(decoder, config)
        self.masked: dict[tuple[str, int], MaskedDropout] = {}
        self.parameters: dict[Key, torch.nn.Parameter] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, peft.tuners.lora.Linear):
                linear, layer = name.split(".")[-1], int(name.split(".layers.")[1].split(".")[0])
                assert module.lora_dropout["default"].p == DROPOUT
                module.lora_dropout["default"] = self.masked[linear, layer] = MaskedDropout()
                for letter, part in (("A", module.lora_A), ("B", module.lora_B)):
                    weight = part["default"].weight
                    weight.data = torch.tensor(adapters[linear, letter, layer], dtype=torch.float64)
                    self.parameters[linear, letter, layer] = weight
        assert self.parameters.keys() == adapters.keys()

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Last hidden states at the last input tokens, (B, D)."""
        hidden = self.model(**inputs, output_hidden_states=True).hidden_states[-1]
        last = inputs["attention_mask"].sum(dim=1) - 1
        return hidden[torch.arange(len(last)), last]

    def penalty(self) -> torch.Tensor:
        """Squared norm of every adapter's change of its matrix, summed."""
        products = {
            (linear, layer): ALPHA / RANK * self.parameters[linear, "B", layer] @ weight
            for (linear, letter, layer), weight in self.parameters.items()
            if letter == "A"
        }
        return sum((product**2).sum() for product in products.values())

    def gradients(
        self, micro_batches: list[tuple[dict, torch.Tensor, dict]]
    ) -> tuple[float, float, dict[Key, np.ndarray]]:
        """Loss, penalty and gradients of one update. A micro-batch is its inputs, its targets (B, D), and a
        mask by linear and layer."""
        for parameter in self.parameters.values():
            parameter.grad = None
        total = 0.0
        for inputs, targets, masks in micro_batches:
            for place, mask in masks.items():
                self.masked[place].mask = torch.tensor(mask)
            loss = torch.nn.functional.mse_loss(self.states(inputs), targets) + self.penalty()
            (loss / len(micro_batches)).backward()
            total += loss.item() / len(micro_batches)
        found = {key: parameter.grad.numpy().copy() for key, parameter in self.parameters.items()}
        return total, self.penalty().item(), found

    def start(self, learning_rate: float, updates: int) -> None:
        """Begins a training of so many updates, with AdamW and a linear decay to 0."""
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=learning_rate, betas=BETAS, weight_decay=DECAY
        )
        self.decay = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda update: (updates - update) / updates
        )

    def update(self) -> float:
        """Applies the gradients, clipped; their norm before."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimiser.step()
        self.decay.step()
        return norm.item()


def torch_inputs(ids: np.ndarray, lengths: np.ndarray, features) -> dict[str, torch.Tensor]:
    """Token ids (B, T), padded on the right, beside their clips' features, as transformers' models take
    them."""
    mask = np.arange(ids.shape[1]) < np.asarray(lengths)[:, None]
    return {
        "input_ids": torch.tensor(np.asarray(ids), dtype=torch.int64),
        "attention_mask": torch.tensor(mask, dtype=torch.int64),
        "input_features": features["input_features"].double(),
        "feature_attention_mask": features["attention_mask"],
    }
