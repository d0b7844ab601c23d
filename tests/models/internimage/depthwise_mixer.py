"""A mixer that is not part of the project: what replacing the operator takes."""

from torch import Tensor, nn

from src.models import SpatialMixer


class DepthwiseMixer(SpatialMixer):
    """Depthwise convolution over a channels-last feature map."""

    def __init__(self, channels: int, groups: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
