"""Text encoder of MGCA: the first layers of a BERT; features of sub-word tokens are summed into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ..._reading import first_line
from ..._text import printable

NO_WORD = -1


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModuleNotFoundError(
            "reports need the packages transformers and tokenizers: pip install 'nnunet-transformers[reports]'"
        ) from error
    return transformers


def _load(auto_class: str, what: str, name: str, **options: Any) -> Any:
    """Load a tokenizer, configuration or model by one of transformers' Auto classes, and none of the code beside it."""
    transformers = _transformers()
    if not Path(name).is_dir():
        # the name may come from a recipe or a checkpoint, so the user is told what is fetched
        rank_zero_info(printable(f"{what}: {name}, from the hub unless it is there from before"))
    try:
        return getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # damaged files make transformers and tokenizers raise anything
        raise OSError(
            f"{name} is not a folder with a {what}, and the hub has none of that name: {first_line(error)}"
        ) from error


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a text encoder.

    Args:
        name: local folder or hub name.

    Raises:
        OSError: if there is no tokenizer of that name.
        ValueError: if it does not map tokens to words, or has no padding token.
        ModuleNotFoundError: without the extra ``[reports]``.
    """
    tokenizer = _load("AutoTokenizer", "tokenizer", name)
    if not tokenizer.is_fast or tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {name} must be a fast one (with tokenizer.json) that has a padding token")
    return tokenizer


def tokenize(tokenizer: Any, reports: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """Tokenize reports.

    Args:
        tokenizer: result of ``load_tokenizer``.
        reports: words separated by spaces.
        max_length: maximum number of tokens including [CLS] and [SEP]; longer reports are truncated.

    Returns:
        each (reports, max_length): ``input_ids``; ``attention_mask``, 0 for padding; ``word_ids``, the index of each
        token's word in its report, -1 for [CLS], [SEP] and padding.
    """
    words = [report.split() for report in reports]
    options = {"is_split_into_words": True, "truncation": True, "padding": "max_length", "max_length": max_length}
    encoded = tokenizer(words, **options)
    word_ids = [[NO_WORD if w is None else w for w in encoded.word_ids(i)] for i in range(len(reports))]
    tokens = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "word_ids": word_ids}
    return {name: torch.tensor(value) for name, value in tokens.items()}


@dataclass(frozen=True)
class ReportFeatures:
    """Global and local features of a batch of reports.

    Attributes:
        report: global features, those of [CLS], (batch, dim).
        words: local features, each the sum over the word's tokens, (batch, words, dim); 0 for padding.
        padding: (batch, words), true for padding.
        attention: (batch, words), attention of [CLS] to each word in the last layer, averaged over the heads and
            summed over the word's tokens; 0 for padding.
    """

    report: Tensor
    words: Tensor
    padding: Tensor
    attention: Tensor


class TextEncoder(nn.Module):
    """Encode radiology reports by the first layers of a BERT.

    Args:
        name: local folder or hub name.
        num_layers: number of layers to keep.
        reference_compat: reproduce MGCA's release: every token has position 0, so that word order is lost; a token gets
            the attention of the next one; a report without padding loses its last word.
        summed_layers: number of last layers whose features are summed (supplement, A.2).

    Raises:
        OSError: if there is no text encoder of that name.
        ValueError: if it has fewer layers.
        ModuleNotFoundError: without the extra ``[reports]``.
    """

    def __init__(self, name: str, num_layers: int = 6, reference_compat: bool = False, summed_layers: int = 1) -> None:
        super().__init__()
        config = _load("AutoConfig", "text encoder", name)
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ValueError(f"num_layers must be 1 to {config.num_hidden_layers} for {name}, got {num_layers}")
        if not 1 <= summed_layers <= num_layers:
            raise ValueError(f"summed_text_layers must be 1 to {num_layers}, the layers in use, got {summed_layers}")
        config.num_hidden_layers = num_layers
        # eager: the other attention implementations do not return attention maps
        options = {"config": config, "attn_implementation": "eager", "add_pooling_layer": False, "weights_only": True}
        self.model = _load("AutoModel", "text encoder", name, **options)
        # from_pretrained sets evaluation mode, which Lightning would keep
        self.model.train()
        self.dim, self.max_length = config.hidden_size, config.max_position_embeddings
        self.reference_compat, self.summed_layers = reference_compat, summed_layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor, word_ids: Tensor) -> ReportFeatures:
        """Encode reports.

        Args:
            input_ids, attention_mask, word_ids: (batch, length), results of ``tokenize``.

        Raises:
            ValueError: if they are longer than the model's position embeddings.
        """
        if input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"max_length is {input_ids.shape[1]}, but the text encoder has {self.max_length} positions; lower "
                "--data.init_args.max_length"
            )
        if self.reference_compat:
            word_ids = _without_last_word(word_ids, attention_mask)
        # a GPU's host waits here, once
        length, words = torch.stack([attention_mask.sum(1).max(), word_ids.max() + 1]).tolist()
        input_ids, attention_mask, word_ids = (x[:, :length] for x in (input_ids, attention_mask, word_ids))
        # by default the model numbers the positions
        positions = {"position_ids": torch.zeros_like(input_ids)} if self.reference_compat else {}
        summed = self.summed_layers
        output = self.model(
            input_ids, attention_mask, output_attentions=True, output_hidden_states=summed > 1, **positions
        )
        tokens, attention = output.last_hidden_state, output.attentions[-1][:, :, 0].mean(1)
        if summed > 1:
            tokens = torch.stack(output.hidden_states[-summed:]).sum(0)
        if self.reference_compat:
            attention = torch.cat([attention[:, 1:], torch.zeros_like(attention[:, :1])], dim=1)
        present = sum_into_words(torch.ones_like(tokens[..., :1]), word_ids, words)[..., 0] > 0
        return ReportFeatures(
            report=tokens[:, 0],
            words=sum_into_words(tokens, word_ids, words),
            padding=~present,
            attention=sum_into_words(attention[..., None], word_ids, words)[..., 0],
        )


def sum_into_words(tokens: Tensor, word_ids: Tensor, words: int) -> Tensor:
    """Sum the features of the tokens of each word.

    Args:
        tokens: (batch, length, dim).
        word_ids: (batch, length), index of each token's word; -1 for tokens outside words.
        words: of the longest report.

    Returns:
        (batch, words, dim); 0 beyond the words of a report.
    """
    index = word_ids.masked_fill(word_ids == NO_WORD, words)[..., None].expand_as(tokens)
    summed = tokens.new_zeros(len(tokens), words + 1, tokens.shape[2]).scatter_add(1, index, tokens)
    return summed[:, :words]


def _without_last_word(word_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Remove the last word of each report without padding."""
    is_last = word_ids == word_ids.max(dim=1, keepdim=True).values
    return word_ids.masked_fill(is_last & attention_mask.bool().all(1, keepdim=True), NO_WORD)
