"""Data sets on the host: `fl.data.digits()`, `fl.data.from_arrays(x, y)`; `partition` deals them to nodes."""

from jaxfl.data.folders import from_image_folder as from_image_folder
from jaxfl.data.frames import from_pandas as from_pandas
from jaxfl.data.motion import smartwatch as smartwatch
from jaxfl.data.readers import from_file as from_file
from jaxfl.data.sets import Dataset as Dataset
from jaxfl.data.sets import digits as digits
from jaxfl.data.sets import fashion_mnist as fashion_mnist
from jaxfl.data.sets import from_arrays as from_arrays
from jaxfl.data.sets import mnist5k as mnist5k
from jaxfl.data.sets import movielens as movielens
from jaxfl.data.sources import from_hugging_face as from_hugging_face
from jaxfl.data.sources import from_torch as from_torch
