# What deploy/Dockerfile is built on: a C compiler, and this machine's Rust (the context is its sysroot) and roots.
FROM tidegate-test/debian:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY roots.crt /etc/ssl/certs/ca-certificates.crt
COPY sysroot /usr/local
ENV CARGO_HOME=/usr/local/cargo
