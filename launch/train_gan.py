"""Train the GAN: deepspeed launch/train_gan.py --deepspeed_config ds_fp16.json"""

from vesselgan.cli.main import run

if __name__ == "__main__":
    run("train_gan")
