# syntax=docker/dockerfile:1
# The agent and its commands, for amd64 and arm64 (`docker buildx build --platform linux/amd64,linux/arm64 .`): each is built on its
# own platform. Both stages are of the same Debian, so that the program finds the C library that it was linked with.
FROM rust:1.95.0-slim-bookworm AS build
# That of the image, without the components of rust-toolchain.toml that a build has no use for.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /build
COPY Cargo.toml Cargo.lock askama.toml ./
COPY proto proto
# Cargo.toml names its tests; they are not built.
COPY integration integration
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin entente && cp target/release/entente /entente

# No shell and no package manager; it runs as user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /entente /usr/local/bin/entente
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/entente"]
CMD ["agent"]
