"""The part of the model that encodes candidates: labels, captions and the words of the vocabulary.

A candidate is always encoded by one function: [SPE] and its text tokens, read at [SPE]. So any text is a label, and
what is encoded can be kept and saved.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .candidates import CANDIDATES_NAME, CandidateCache, average_variants, freeze_ids, pad_ids, predictable_ids
from .output_recording import unrecorded
from .pretrained_upv2 import UniPerceiverV2PreTrainedModel
from .unified_decoder import ALL

CANDIDATE_CHUNK = 1024
"""Candidates that are encoded in one pass."""


class CandidateEncodingModel(UniPerceiverV2PreTrainedModel):
    """Base of the model; its subclass has the weights and `decode_text`."""

    spe_token: nn.Parameter
    candidate_cache: CandidateCache

    def decode_text(
        self, input_ids: Tensor, attention_mask: Tensor, route: str, step_seed: int | None = None, read: slice = ALL
    ) -> Tensor:
        """Run g over texts; the subclass says how."""
        raise NotImplementedError

    @unrecorded
    def encode_candidates(
        self, input_ids: Tensor, attention_mask: Tensor, route: str = "label", step_seed: int | None = None
    ) -> Tensor:
        """Encode candidates: [SPE] and the text's tokens, read at [SPE].

        Args:
            input_ids: ``<s> words </s>`` of each, ``(candidates, tokens)``.
            attention_mask: 1 = real token, ``(candidates, tokens)``.
            route: Key of ``ROUTES``: ``"label"`` for names and captions, ``"vocabulary"`` for words.
            step_seed: Seed of the gate noise in training.

        Returns:
            Unit vectors, ``(candidates, D)``.
        """
        chunks = list(zip(input_ids.split(CANDIDATE_CHUNK), attention_mask.split(CANDIDATE_CHUNK)))
        if len(chunks) > 4:
            chunks = tqdm(chunks, desc="Encoding candidates", unit_scale=CANDIDATE_CHUNK)
        encoded = [self.decode_text(ids, mask, route, step_seed, slice(1))[:, 0] for ids, mask in chunks]
        return torch.cat(encoded)

    def label_candidates(self, label_set: str | None, step_seed: int | None = None) -> Tensor:
        """Encode a named label set; kept until the weights change.

        Args:
            label_set: Key of ``config.label_sets``.
            step_seed: Seed of the gate noise in training.

        Returns:
            Unit vectors, ``(labels, D)``.

        Raises:
            ValueError: If the config has no such label set.
        """
        labels = self.config.label_sets.get(label_set)
        if labels is None:
            raise ValueError(
                f"The config must hold the label set {label_set!r}, got {sorted(self.config.label_sets)}. "
                "Call `set_labels(labels, tokenizer)` first."
            )
        return self.text_candidates(labels["token_ids"], step_seed)

    def text_candidates(self, token_ids: Sequence[Sequence[Sequence[int]]], step_seed: int | None = None) -> Tensor:
        """Encode labels from their token ids; each label is kept until the weights change.

        Args:
            token_ids: For each label the ids ``<s> words </s>`` of its variants, whose embeddings are averaged.
            step_seed: Seed of the gate noise in training.

        Returns:
            Unit vectors, ``(labels, D)``.
        """

        def encode(positions: Sequence[int]) -> Tensor:
            labels = [token_ids[position] for position in positions]
            rows = [ids for variants in labels for ids in variants]
            input_ids, mask = pad_ids(rows, self.config.pad_token_id, self.spe_token.device)
            embeddings = self.encode_candidates(input_ids, mask, "label", step_seed)
            return average_variants(embeddings, [len(variants) for variants in labels])

        if self.training:
            return encode(range(len(token_ids)))
        return self.candidate_cache.get_labels(self, [freeze_ids(variants) for variants in token_ids], encode)

    def batch_candidates(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode tokenized labels, with gradient if there is any; without, each label is kept.

        Args:
            input_ids: ``<s> words </s>`` of each, ``(labels, tokens)``.
            attention_mask: 1 = real token, ``(labels, tokens)``.

        Returns:
            Unit vectors, ``(labels, D)``.
        """
        if self.training or torch.is_grad_enabled():
            return self.encode_candidates(input_ids, attention_mask)
        rows = zip(input_ids.tolist(), attention_mask.tolist())
        return self.text_candidates([[[token for token, is_real in zip(*row) if is_real]] for row in rows])

    def vocabulary_ids(self) -> Tensor:
        """Token ids that can be predicted: all but ``<s> <pad> <unk> <mask>``, ascending."""
        return predictable_ids(self.config).to(self.spe_token.device)

    def encode_vocabulary(self, token_ids: Tensor, step_seed: int | None = None) -> Tensor:
        """Encode words from their token ids, never from decoded strings: ``[SPE] <s> v </s>``.

        Args:
            token_ids: ``(words,)``.
            step_seed: Seed of the gate noise in training.

        Returns:
            Unit vectors, ``(words, D)``.
        """
        begin = torch.full_like(token_ids, self.config.bos_token_id)
        end = torch.full_like(token_ids, self.config.eos_token_id)
        input_ids = torch.stack([begin, token_ids, end], dim=1)
        return self.encode_candidates(input_ids, torch.ones_like(input_ids), "vocabulary", step_seed)

    def vocabulary_candidates(self) -> Tensor:
        """Encode the whole vocabulary, in the order of `vocabulary_ids`; kept until the weights change."""
        if self.training:
            return self.encode_vocabulary(self.vocabulary_ids())
        return self.candidate_cache.get(self, "vocabulary", lambda: self.encode_vocabulary(self.vocabulary_ids()))

    def save_candidates(self, folder: str | Path) -> None:
        """Encode the vocabulary and all label sets, and write them and all labels kept so far beside the checkpoint.

        The file is a cache, never a part of the weights: `load_candidates` refuses it if they changed.

        Args:
            folder: The checkpoint's folder, which exists.

        Raises:
            ValueError: If the model is in training mode.
        """
        if self.training:
            raise ValueError("The model must be in evaluation mode to save candidates. Call `model.eval()`.")
        self.vocabulary_candidates()
        for label_set in self.config.label_sets:
            self.label_candidates(label_set)
        self.candidate_cache.save(self, Path(folder) / CANDIDATES_NAME)

    def load_candidates(self, folder: str | Path) -> None:
        """Take over what `save_candidates` wrote.

        Args:
            folder: The checkpoint's folder.

        Raises:
            ValueError: If other weights made the file.
        """
        self.candidate_cache.load(self, Path(folder) / CANDIDATES_NAME)
