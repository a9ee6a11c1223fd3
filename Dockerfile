# The sessiond image: one binary, no shell, no root. See compose.yaml for how to run it.
#
#   docker build -t sessiond .        (or: podman build -t sessiond . / buildah bud --format docker -t sessiond .)
#
# HEALTHCHECK is of Docker's image format: builders that default to the OCI format need `--format docker` to keep it.

# The glibc of the builder is not newer than the one of the final image: both are Debian 12.
FROM docker.io/library/rust:1-slim-bookworm AS build
WORKDIR /build
# The image carries no debug information: it would be most of the binary. The symbols stay, for backtraces.
ENV CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=debuginfo
# For builds that are only tried: --build-arg CARGO_PROFILE_RELEASE_LTO=off, and the like.
ARG CARGO_PROFILE_RELEASE_LTO
ARG CARGO_PROFILE_RELEASE_OPT_LEVEL
ARG CARGO_PROFILE_RELEASE_CODEGEN_UNITS

# The dependencies, in a layer that only Cargo.toml and Cargo.lock invalidate: they are compiled for a crate without a
# line of code. Declared tests, benches and examples are cut from the manifest, their files are not in the context.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { cut = /^\[\[(test|bench|example)\]\]/ } !cut' Cargo.toml > Cargo.toml.cut \
    && mv Cargo.toml.cut Cargo.toml \
    && mkdir src && echo '//! Empty.' > src/lib.rs && printf '//! Empty.\nfn main() {}\n' | tee src/main.rs > build.rs \
    && cargo build --locked --release --bin sessiond \
    # What was made of the stand-in must go, or Cargo takes it for newer than the files that follow.
    && cargo clean --locked --release --package sessiond \
    && rm -r src build.rs

COPY build.rs ./
COPY proto proto
COPY src src
RUN cargo build --locked --release --bin sessiond && mkdir /build/empty

# Why not a static musl binary on scratch: a musl build needs a Rust target that the builder image does not ship, and
# scratch has neither CA certificates nor a resolver's configuration for storages across the network. This base adds
# those, glibc and libgcc, and nothing that can run anything: no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/sessiond /sessiond
# For SESSIOND_STORAGE=file:/var/lib/sessiond/registry. A volume that is new takes its owner from here.
COPY --from=build --chown=65532:65532 /build/empty /var/lib/sessiond

# A container's loopback is its own, so inside one the default of 127.0.0.1 would reach nobody.
ENV SESSIOND_LISTEN=0.0.0.0:50051 SESSIOND_ADMIN_LISTEN=0.0.0.0:9090
EXPOSE 50051 9090
# By number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/sessiond", "health"]
ENTRYPOINT ["/sessiond"]
CMD ["serve"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sessiond" \
      org.opencontainers.image.description="The session registry of a fleet of gateways, over gRPC" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
