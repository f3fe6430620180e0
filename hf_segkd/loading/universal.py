"""Universal models (Mask2Former and its kin): class and mask queries read as per-pixel logits."""

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

# Those that predict a class, or none, and a mask for each query. VidEoMT reads videos, DETR predicts boxes.
UNIVERSAL_MODELS = ("eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer")
TASK = "the task is semantic"


def query_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Turn the queries of a universal model into class scores per pixel.

    The score of a class is `Σ_q softmax(class_q) · sigmoid(mask_q)`, "no object" left out, as in every
    `post_process_semantic_segmentation`. The logits are the logarithm of the scores divided by their sum over classes:
    their softmax is the distribution over classes, and their best class is the processors'.

    Args:
        class_logits (`torch.Tensor` of shape `(B, Q, K + 1)`): Class of each query, "no object" last.
        mask_logits (`torch.Tensor` of shape `(B, Q, h, w)`): Mask of each query.

    Returns:
        `torch.Tensor` of shape `(B, K, h, w)`: Log-probabilities, float32, at the size of the masks. A score that
        underflows counts as float32's smallest normal number.

    Differs from the original: Mask2Former's and EoMT's processors enlarge the masks before the sigmoid, which costs K
    maps of image size; here whoever needs another size resizes the logits.

    Reference: Cheng et al., Per-Pixel Classification is Not All You Need for Semantic Segmentation, NeurIPS 2021,
    https://huggingface.co/papers/2107.06278
    """
    # Float32 whatever the autocast: a sum over 100 queries in bf16 would move the logarithm by hundredths.
    with torch.autocast(class_logits.device.type, enabled=False):
        probabilities = class_logits.float().softmax(dim=-1)[..., :-1]
        scores = torch.einsum("bqk,bqhw->bkhw", probabilities, mask_logits.float().sigmoid())
        scores = scores.clamp(min=torch.finfo(scores.dtype).tiny)
        return scores.log() - scores.sum(dim=1, keepdim=True).log()


def semantic_task(model: PreTrainedModel) -> Tensor:
    """The sentence that asks OneFormer for a semantic map, as the token ids its processor would make.

    Args:
        model (`PreTrainedModel`): OneFormer; its tokenizer is read from where the model came from.

    Returns:
        `torch.Tensor` of shape `(1, task_seq_len)`: Token ids, int64, padded with zeros.

    Raises:
        ValueError: There is no tokenizer at that place.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise _no_tokenizer(model.name_or_path) from error
    length = model.config.task_seq_len
    tokens = tokenizer(TASK, padding="max_length", max_length=length, truncation=True)
    # A folder without tokenizer files gives a tokenizer without words, not an error.
    if tokenizer.decode(tokens["input_ids"], skip_special_tokens=True).strip() != TASK:
        raise _no_tokenizer(model.name_or_path)
    return torch.tensor([tokens["input_ids"]]) * torch.tensor([tokens["attention_mask"]])


def _no_tokenizer(place: str) -> ValueError:
    return ValueError(
        f"OneFormer is told its task in words, but there is no tokenizer at '{place}'. Load it from its Hub id, or "
        "from a folder into which OneFormerProcessor.save_pretrained also wrote."
    )
