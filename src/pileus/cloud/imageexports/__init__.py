"""Image exports: the data of images in other formats, made for somebody to fetch, and forgotten soon after."""
