"""Objects followed through the frames of a video."""

from dataclasses import replace
from typing import Any

import numpy as np

from .errors import UserError
from .results import Result

__all__ = ['Tracker']


class Tracker:
    """ByteTrack of the package trackers, which supervision recommends, for one video."""

    def __init__(self, *, fps: float, score_threshold: float) -> None:
        """Begin a video.

        Args:
            fps: Frames per second.
            score_threshold: Lowest score of an object that begins a track.

        Raises:
            UserError: If trackers is not installed.
        """
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise UserError('--track needs the package trackers, which is not installed: '
                            'pip install trackers') from error
        self._tracker: Any = ByteTrackTracker(
            frame_rate=fps, track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold)

    def update(self, result: Result) -> Result:
        """Return the result of the next frame with ``track_ids``."""
        assert result.boxes is not None
        detections = result.to_supervision()
        detections.mask = None  # not looked at, and large
        detections.data = {'index': np.arange(len(result))}
        tracked = self._tracker.update(detections)
        ids = np.full(len(result), -1, np.int64)
        if len(tracked):
            ids[tracked.data['index']] = tracked.tracker_id
        return replace(result, track_ids=ids)
