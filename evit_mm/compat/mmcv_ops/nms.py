import torch
import torchvision  # noqa: F401  (registers)
from torch import Tensor

from .precision import working_dtype


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, shape (N, 4).
        scores: Shape (N,); may differ from ``boxes`` in dtype.
        iou_threshold: A box goes if its IoU with a better one exceeds this value.
        offset: Added to every width and height; 1 for inclusive pixel corners, else 0.

    Returns:
        Indices of the boxes kept, best score first, int64, shape (K,).
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    dtype = working_dtype(torch.promote_types(boxes.dtype, scores.dtype))
    corners = boxes.to(dtype)
    if offset:
        # Widths, heights and overlaps all grow by the offset when the far corners move.
        corners = torch.cat((corners[:, :2], corners[:, 2:] + offset), dim=1)
    if dtype == torch.float32:
        # torchvision compares a float32 IoU with a double threshold on CPU. For 0.6,
        # whose float32 is larger, that drops boxes at exactly the threshold; mmcv
        # rounds the threshold too, and keeps them.
        iou_threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    keep: Tensor = torch.ops.torchvision.nms(corners, scores.to(dtype), iou_threshold)
    return keep


OPERATORS = (nms,)
