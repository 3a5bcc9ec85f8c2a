# docker build -t encbench . && docker run --rm -v "$PWD/runs:/runs" encbench run --out /runs/first
# With an NVIDIA GPU: --build-arg TORCH=https://pypi.org/simple, and run with --gpus all.
FROM python:3.13-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url $TORCH
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
ENV ENCBENCH_CACHE=/runs/.cache HF_HOME=/runs/.huggingface
ENTRYPOINT ["encbench"]
