"""A frame that a person understands at a glance, drawn from a state record (no plotting library; Pillow rasterises).

Blue disc with a white nose: the robot; green rings: the goal; orange discs with arrows: pedestrians and their
velocities, red when they feel more than the force limit from the robot, hollow when the robot cannot see them; amber
halo: somebody nearer than a near miss; pale blue: what the range scan sees; blue line: the way travelled.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.envs.social_nav.geometry import crosses
from pipeline.envs.social_nav.layout import (
    DT,
    FORCE_LIMIT,
    GOAL_RADIUS,
    NEAR_MISS_CLEARANCE,
    PEDESTRIAN_RADIUS,
    ROBOT_RADIUS,
)
from pipeline.envs.social_nav.observation import FEATURES, RAY_COS, RAY_SIN

WIDTH, HEIGHT = 640, 544  # px of a frame; multiples of 16, as video encoders want
_HEADER = 56  # px
_MARGIN = 0.6  # m around the scene
_OVERSAMPLING = 2  # drawn larger and averaged down: smooth edges
_ARROW = 0.7  # s: an arrow ends where the pedestrian would be after this time

_GROUND, _BAND, _WALL, _INK = (250, 249, 246), (38, 46, 56), (62, 66, 72), (245, 245, 245)
_SEEN, _ROBOT, _TRAIL, _PLAN = (221, 234, 246), (31, 96, 176), (120, 165, 214), (170, 200, 170)
_GOAL, _CALM, _DISTURBED, _HALO = (38, 140, 72), (240, 150, 50), (208, 40, 40), (250, 214, 120)
_OUTCOMES = {
    "success": ("GOAL REACHED", _GOAL),
    "collision_pedestrian": ("COLLISION WITH A PEDESTRIAN", _DISTURBED),
    "collision_wall": ("COLLISION WITH A WALL", _DISTURBED),
    "truncated": ("OUT OF TIME", (110, 110, 110)),
}

Position = tuple[float, float]
Colour = tuple[int, int, int]


class _Canvas:
    """A drawing surface in metres: x to the right, y upwards, fitted to the scene."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        size = (WIDTH * _OVERSAMPLING, HEIGHT * _OVERSAMPLING)
        self.image = Image.new("RGB", size, _GROUND)
        self.draw = ImageDraw.Draw(self.image)
        room = np.array([WIDTH, HEIGHT - _HEADER]) * _OVERSAMPLING
        self.scale = float((room / (high - low)).min())  # px per m
        self._middle = (low + high) / 2
        self._centre = np.array([room[0] / 2, _HEADER * _OVERSAMPLING + room[1] / 2])

    def at(self, x: float, y: float) -> Position:
        return (
            self._centre[0] + (x - self._middle[0]) * self.scale,
            self._centre[1] - (y - self._middle[1]) * self.scale,
        )

    def disc(
        self, x: float, y: float, radius: float, fill: Colour | None = None, outline: Colour | None = None, w: int = 2
    ) -> None:
        px, py = self.at(x, y)
        r = radius * self.scale
        self.draw.ellipse((px - r, py - r, px + r, py + r), fill=fill, outline=outline, width=w * _OVERSAMPLING)

    def line(self, points: Sequence[Position], fill: Colour, width: float) -> None:
        pixels = [self.at(*point) for point in points]
        self.draw.line(pixels, fill=fill, width=max(1, round(width * _OVERSAMPLING)), joint="curve")

    def arrow(self, x: float, y: float, dx: float, dy: float, fill: Colour) -> None:
        length = math.hypot(dx, dy)
        if length < 0.12:
            return
        self.line([(x, y), (x + dx, y + dy)], fill, 2.2)
        ux, uy = dx / length, dy / length
        tip = (x + dx + 0.12 * ux, y + dy + 0.12 * uy)
        left = (x + dx - 0.1 * ux - 0.1 * uy, y + dy - 0.1 * uy + 0.1 * ux)
        right = (x + dx - 0.1 * ux + 0.1 * uy, y + dy - 0.1 * uy - 0.1 * ux)
        self.draw.polygon([self.at(*tip), self.at(*left), self.at(*right)], fill=fill)

    def text(self, x: float, y: float, words: str, size: int, fill: Colour, anchor: str) -> None:
        """At pixel (x, y) of the finished frame."""
        font = ImageFont.load_default(size * _OVERSAMPLING)
        self.draw.text((x * _OVERSAMPLING, y * _OVERSAMPLING), words, font=font, fill=fill, anchor=anchor)


def draw_frame(
    state: np.void, observation: np.ndarray, title: str, horizon: int, trail: Sequence[Position] = ()
) -> np.ndarray:
    """One `SLOT` record, its observation (OBSERVATION_SIZE,) and the robot's past places (m) -> (544, 640, 3) uint8."""
    x, y, cos, sin, speed, goal_x, goal_y = (
        float(state[key]) for key in ("x", "y", "cos", "sin", "speed", "goal_x", "goal_y")
    )
    n, walls = int(state["pedestrians"]), state["walls"][: state["wall_count"]]

    # the canvas holds all that the whole episode may show: walls, start and goal, routes
    stops = [slice(int(length)) for length in state["route_length"][:n]]
    xs = np.concatenate([walls[:, [0, 2]].ravel(), [goal_x, -5.0], *(state["route_x"][i, stops[i]] for i in range(n))])
    ys = np.concatenate([walls[:, [1, 3]].ravel(), [goal_y, 0.0], *(state["route_y"][i, stops[i]] for i in range(n))])
    canvas = _Canvas(np.array([xs.min(), ys.min()]) - _MARGIN, np.array([xs.max(), ys.max()]) + _MARGIN)

    reach = 1.0 / observation[FEATURES.index("proximity_00") :].astype(np.float64) - 1.0 + ROBOT_RADIUS
    rays = zip(reach, RAY_COS, RAY_SIN, strict=True)
    scan = [(x + r * (cos * a - sin * b), y + r * (sin * a + cos * b)) for r, a, b in rays]
    canvas.draw.polygon([canvas.at(*point) for point in scan], fill=_SEEN)
    for point in scan:
        canvas.disc(*point, 0.045, fill=_TRAIL)

    if n and state["steps"] and state["clearance"] < NEAR_MISS_CLEARANCE:
        canvas.disc(x, y, ROBOT_RADIUS + NEAR_MISS_CLEARANCE, fill=_HALO)
    for x1, y1, x2, y2 in walls.tolist():
        canvas.line([(x1, y1), (x2, y2)], _WALL, max(3.0, 0.1 * canvas.scale / _OVERSAMPLING))
    canvas.line([(x, y), (float(state["waypoint_x"]), float(state["waypoint_y"]))], _PLAN, 1.2)
    canvas.disc(goal_x, goal_y, GOAL_RADIUS, outline=_GOAL, w=3)
    canvas.disc(goal_x, goal_y, GOAL_RADIUS / 2.5, fill=_GOAL)
    if len(trail) > 1:
        canvas.line(list(trail), _TRAIL, 3.0)

    for i in range(n):
        px, py = float(state["ped_x"][i]), float(state["ped_y"][i])
        colour = _DISTURBED if state["robot_force"][i] > FORCE_LIMIT else _CALM
        hidden = any(crosses.py_func(x, y, px, py, *wall) for wall in walls.tolist())
        canvas.arrow(px, py, _ARROW * float(state["ped_vx"][i]), _ARROW * float(state["ped_vy"][i]), colour)
        canvas.disc(px, py, PEDESTRIAN_RADIUS, fill=_GROUND if hidden else colour, outline=colour)

    crashed = state["collision_pedestrian"] or state["collision_wall"]
    canvas.disc(x, y, ROBOT_RADIUS, fill=_ROBOT, outline=_DISTURBED if crashed else _ROBOT, w=4 if crashed else 1)
    canvas.arrow(x, y, 0.7 * speed * cos, 0.7 * speed * sin, _ROBOT)
    nose = [(0.24, 0.0), (-0.12, 0.13), (-0.12, -0.13)]  # m, in the robot's frame
    canvas.draw.polygon([canvas.at(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in nose], fill=_INK)

    outcome, band = next((_OUTCOMES[key] for key in _OUTCOMES if state[key]), ("", _BAND))
    canvas.draw.rectangle((0, 0, WIDTH * _OVERSAMPLING, _HEADER * _OVERSAMPLING), fill=band)
    facts = (
        f"{int(state['steps']) * DT:.1f} s     step {int(state['steps'])} of {horizon}     speed {speed:.1f} m/s     "
        f"near misses {int(state['near_misses'])}     disturbed {int(state['force_events'])}"
    )
    canvas.text(12, 17, title, 17, _INK, "lm")
    canvas.text(WIDTH - 12, 17, outcome, 17, _INK, "rm")
    canvas.text(12, 40, facts, 13, _INK, "lm")
    # the mean of each square, rounded after either direction
    return np.asarray(canvas.image.reduce((_OVERSAMPLING, 1)).reduce((1, _OVERSAMPLING)))
