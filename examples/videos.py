"""Save one frame of each video every few seconds, and check the frames for damage and near-duplicates.

    python examples/videos.py VIDEO... --every 2 --out frames

Animated GIF and WebP files are decoded by Pillow, other videos by PyAV (`pip install av`). Pass another function as
`decode` to use another decoder. The folder of frames can be used as any other folder of images:

    images = ImageFiles(find_images("frames"), transform=transform)
"""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from math import floor
from pathlib import Path

from PIL import Image, ImageSequence

from udmlss.data import check_images

Decoder = Callable[[Path], Iterator[tuple[float, Image.Image]]]  # the time in seconds and the image of each frame


def decode_animation(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """Yield the frames of an animated GIF or WebP file."""
    with Image.open(path) as animation:
        seconds = 0.0
        for frame in ImageSequence.Iterator(animation):
            frame.load()  # reads the duration of a WebP frame
            yield seconds, frame.convert("RGB")
            seconds += frame.info.get("duration", 100) / 1000  # viewers show a frame without a duration for 100 ms


def decode_video(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """Yield the frames of a video."""
    if path.suffix.lower() in {".gif", ".webp"}:
        yield from decode_animation(path)
        return
    try:
        import av
    except ImportError as error:
        message = "Decoding this video requires PyAV, got none. Install it: pip install av"
        raise ImportError(message, name=error.name) from error
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.time, frame.to_image()


def save_frames(video: Path, folder: Path, every: float, decode: Decoder = decode_video) -> list[Path]:
    """Save the first frame of each period of a video as a JPEG file, whose name contains the time in seconds.

    Args:
        video: Path of the video.
        folder: Path of the folder for the frames.
        every: Length of a period in seconds.
        decode: Function that yields the time in seconds and the image of each frame.

    Returns:
        The paths of the frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    n_periods = 0
    for seconds, image in decode(video):
        if seconds >= n_periods * every:
            paths.append(folder / f"{video.stem}_{seconds:09.2f}s.jpg")
            image.save(paths[-1], quality=95)
            n_periods = floor(seconds / every) + 1
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Save frames of videos, and check them."""
    parser = ArgumentParser(description="Save one frame of each period of videos.")
    parser.add_argument("videos", nargs="+", type=Path, help="the videos")
    parser.add_argument("--every", type=float, default=2, help="length of a period in seconds")
    parser.add_argument("--out", type=Path, default=Path("frames"), help="folder for the frames")
    args = parser.parse_args(arguments)
    if not args.every > 0:
        parser.error(f"--every must be above 0, got {args.every}")
    names = [video.stem for video in args.videos]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        parser.error(f"videos must have different names, got several {', '.join(repeated)}; use another --out for each")
    paths = [path for video in args.videos for path in save_frames(video, args.out / video.stem, args.every)]
    print(f"{len(paths)} frames of {len(args.videos)} videos are in {args.out}.")
    print(check_images(paths))


if __name__ == "__main__":
    main()
