"""Draw synthetic, labelled patches from a trained GAN: python launch/generate.py run=RUN"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("generate")
